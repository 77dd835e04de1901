"""The names by which `python -m bench` finds its benches."""

from bench.__main__ import BENCHES, TOOLS


def test_no_two_benches_have_one_name() -> None:
    names = [name for group in (BENCHES, TOOLS) for names in group.values() for name in names]
    assert sorted(names) == sorted(set(names))
