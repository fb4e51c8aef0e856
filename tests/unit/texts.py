"""Texts of all kinds, for Hypothesis: cheap enough for a folder that takes seconds."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st

_EVERY_KIND = "".join(map(chr, range(0x100))) + (
    "\u0301\u05d0\u0638\u0e33\u200b\u200d\u2028\u202e\u20ac\u3042\ud7ff\ue000\ufb01\ufeff\ufffd\uffff"
    "\U00010000\U0001d11e\U0001f600\U0001f9d1\U000e0001\U0010ffff"
)
"""Controls, ASCII, Latin-1; what joins, turns round, breaks lines or is seen by nobody; every length in UTF-8.

Hypothesis' own tables of all characters take seconds to make where there are none yet.
"""


def any_text(**sizes: Any) -> st.SearchStrategy[str]:
    """Texts (sizes as for `st.text`), of every kind of character; of all of them in the profile `search`."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "search":
        return st.text(**sizes)
    return st.text(st.integers(0, len(_EVERY_KIND) - 1).map(_EVERY_KIND.__getitem__), **sizes)
