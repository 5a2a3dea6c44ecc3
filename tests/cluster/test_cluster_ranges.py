"""Ranges of ranks and of hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerserver.cluster.errors import ClusterError
from workerserver.cluster.find.host_lists import MAX_HOSTS, expand_hosts, unfold
from workerserver.ranks import fold


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([0, 1, 3, 4, 5], "0-1,3-5"),
        ([5, 3, 4, 0, 1, 3], "0-1,3-5"),
        (range(4096), "0-4095"),
        ([0, 2, 4], "0,2,4"),
    ],
)
def test_fold(ranks: list[int], text: str) -> None:
    assert fold(ranks) == text
    assert unfold(text) == sorted(set(ranks))


@given(st.sets(st.integers(0, 300)))
def test_unfold_undoes_fold(ranks: set[int]) -> None:
    assert unfold(fold(ranks)) == sorted(ranks)


def test_fold_wants_ranks() -> None:
    with pytest.raises(ValueError, match="-1"):
        fold([0, -1])


def test_people_type_ranges() -> None:
    assert unfold(" 3 , 0-2,1-4 ") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("node7:8000", ["node7:8000"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[001-002,7]", ["n001", "n002", "n7"]),
        ("a[0-1]b[0-1]", ["a0b0", "a0b1", "a1b0", "a1b1"]),
        (
            "node[01-02]:25[000-001]",
            [f"node{n}:25{p}" for n in ("01", "02") for p in ("000", "001")],
        ),
        ("a1,b[2-3],c4", ["a1", "b2", "b3", "c4"]),
        ("a\tb[1, 2]  c", ["a", "b1", "b2", "c"]),
        ("[::1]:8000 [fe80::1%eth0]:80", ["[::1]:8000", "[fe80::1%eth0]:80"]),
        ("[2001:db8::7]:80[0-1]", ["[2001:db8::7]:800", "[2001:db8::7]:801"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_hosts(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize("text", ["1-", "-1", "3-1", "a", "1,,2", "1.5", "0x1", "1-2-3", "9" * 13])
def test_what_is_no_ranks(text: str) -> None:
    with pytest.raises(ClusterError) as caught:
        unfold(text)
    assert text[:20] in str(caught.value)


@pytest.mark.parametrize("text", ["n[1", "n1]", "n[[1]]", "n[3-1]", "n[1-]", "n[1--2]", "n][1]"])
def test_what_is_no_hosts(text: str) -> None:
    with pytest.raises(ClusterError) as caught:
        expand_hosts(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["n[0-999999999]", "n[0-9999]m[0-9999]", "n[0-199999],m[0-199999]", "n" + "[0-9]" * 40]
)
def test_a_typing_error_does_not_eat_the_memory(text: str) -> None:
    with pytest.raises(ClusterError, match="too many"):
        expand_hosts(text)


def test_too_many_ranks() -> None:
    assert len(unfold(f"0-{MAX_HOSTS - 1}")) == MAX_HOSTS
    for text in (f"0-{MAX_HOSTS}", "0-999999999999", f"0-{MAX_HOSTS - 1},{MAX_HOSTS + 5}"):
        with pytest.raises(ClusterError, match="more than"):
            unfold(text)


def test_errors_are_one_short_line() -> None:
    with pytest.raises(ClusterError) as caught:
        unfold("x" * 100_000)
    assert len(str(caught.value)) < 300
