"""Texts of all kinds, for Hypothesis: cheap enough for a folder that takes seconds."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import strategies as st

_STRANGE: Final = (
    "\u0301\u05d0\u0638\u0e33\u200b\u200d\u2028\u202e\u20ac\u3042\ud7ff\ue000\ufb01\ufeff\ufffd\uffff"
    "\U00010000\U0001d11e\U0001f600\U0001f9d1\U000e0001\U0010ffff"
)
"""What joins, turns round, breaks lines or is seen by nobody, in two, three and four bytes of UTF-8."""
_EVERY_KIND: Final = "".join(map(chr, range(0x100 - len(_STRANGE)))) + _STRANGE
"""256 characters: controls, ASCII, Latin-1, strange ones."""


def any_text(*, min_size: int = 0, max_size: int | None = None) -> st.SearchStrategy[str]:
    """Texts of so many characters, of 256 of every kind; of all that there are in the profile `search`.

    Hypothesis' own tables of characters take seconds to make where there are none yet.
    """
    if os.environ.get("HYPOTHESIS_PROFILE") == "search":
        return st.text(min_size=min_size, max_size=max_size)
    return st.binary(min_size=min_size, max_size=max_size).map(_read)


def _read(raw: bytes) -> str:
    return "".join(_EVERY_KIND[number] for number in raw)
