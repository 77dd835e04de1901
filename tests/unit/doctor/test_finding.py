"""The rules of a finding."""

import pytest

from llmserve.doctor import Finding, FindingSection, Status, count, note, ok, problem, warning


@pytest.mark.parametrize("status", [Status.NOTE, Status.WARNING, Status.PROBLEM])
def test_what_is_not_ok_has_advice(status: Status) -> None:
    with pytest.raises(AssertionError):
        Finding("cores", status, "1")


def test_what_is_ok_needs_none() -> None:
    with pytest.raises(AssertionError):
        Finding("cores", Status.OK, "1", "buy more")


def test_findings_are_counted_over_all_sections() -> None:
    sections = [
        FindingSection("a", (ok("1", "x"), problem("2", "x", "y"))),
        FindingSection("b", (problem("3", "x", "y"), note("4", "x", "y"), warning("5", "x", "y"))),
    ]
    assert [count(sections, status) for status in Status] == [1, 1, 1, 2]
