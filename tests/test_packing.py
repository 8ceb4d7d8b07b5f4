"""Arrays as text: what is packed is what is unpacked, in little room."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.packing import pack, unpack


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_packed_values_come_back(values: list[int]) -> None:
    assert unpack(pack(np.array(values, np.int64))).tolist() == values


@given(st.lists(st.integers(0, 255), max_size=50), st.lists(st.floats(allow_nan=False), max_size=50))
def test_of_other_types_too(small: list[int], floats: list[float]) -> None:
    assert unpack(pack(np.array(small, np.uint8)), np.uint8).tolist() == small
    assert unpack(pack(np.array(floats, np.float64)), np.float64).tolist() == floats


def test_a_hundred_thousand_latencies_take_little_room() -> None:
    latencies = np.random.default_rng(0).lognormal(6, 0.3, 100_000).astype(np.int64)
    assert len(pack(latencies)) < 2.5 * len(latencies)
    assert len(pack(np.zeros(100_000, np.int64))) < 2000


@pytest.mark.parametrize("text", ["!", "AAAA", base64.b64encode(b"x" * 20).decode()])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(text)
