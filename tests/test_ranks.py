"""Lists of ranks as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerserver.ranks import pack, unpack


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([], ""),
        ([5], "5"),
        ([0, 1], "0-1"),
        ([0, 8], "0,8"),
        (range(16384), "0-16383"),
        (range(3, 16384, 8), "3-16379:8"),
        ([0, 1, 2, 9, 17, 25, 33, 40], "0-2,9-33:8,40"),
        ([0, 2, 3, 4], "0,2-4"),
        ([0, 4, 8, 9, 10, 11], "0-8:4,9-11"),
    ],
)
def test_pack(ranks: list[int] | range, text: str) -> None:
    assert pack(list(ranks)) == text
    assert unpack(text, 1 << 20) == list(ranks)


@given(st.sets(st.integers(0, 300) | st.integers(0, 999_999_999)))
def test_nothing_is_lost(ranks: set[int]) -> None:
    assert unpack(pack(sorted(ranks)), len(ranks)) == sorted(ranks)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a", "neither a rank"),
        ("1,", "neither a rank"),
        ("-1", "neither a rank"),
        ("1-2:0", "neither a rank"),
        ("1:2", "neither a rank"),
        ("0-9999999999", "neither a rank"),
        ("\u0661", "neither a rank"),
        ("5-3", "backwards"),
        ("0-10", "more than 10"),
        ("0-999999999", "more than 10"),
        (",".join(["7"] * 11), "more than 10"),
    ],
)
def test_no_ranks(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack(text, 10)
