"""Plain values and protobuf's."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.texts import any_text

from hostagent import values

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(any_text(), plain, max_size=5))
def test_what_goes_into_a_struct_comes_out_equal(original: dict[str, Any]) -> None:
    struct = values.plain_to_struct(original)
    assert values.struct_to_plain(struct) == original
    assert json_format.MessageToDict(struct) == original


def test_whole_numbers_come_out_as_ints() -> None:
    struct = Struct()
    struct.update({"size_mb": 1024, "share": 0.5})
    found = values.struct_to_plain(struct)
    assert (type(found["size_mb"]), type(found["share"])) == (int, float)


def test_values_nested_too_deep_are_refused() -> None:
    deep: Any = 1
    for _ in range(values.DEEPEST + 1):
        deep = [deep]
    with pytest.raises(values.TooDeep):
        values.struct_to_plain(values.plain_to_struct({"a": deep}))
