"""One line when a medium's trouble begins, one when it ends, and words for `status` meanwhile."""

import logging

import pytest

from llmserve.kvstore.store.medium_errors import MediumErrors
from llmserve.kvstore.tiers.base import TierOutcome


@pytest.fixture
def trouble(caplog: pytest.LogCaptureFixture) -> MediumErrors:
    caplog.set_level(logging.INFO)
    return MediumErrors("disk")


def test_it_is_logged_when_it_begins_and_ends(
    trouble: MediumErrors, caplog: pytest.LogCaptureFixture
) -> None:
    assert trouble.words == ""
    for number in range(5):
        trouble.note("written", TierOutcome.FAILED, f"broken {number}")
    assert trouble.words == "blocks are not written: broken 4", "the latest"
    for _ in range(2):
        trouble.note("written", TierOutcome.DONE, "")
    assert trouble.words == ""
    said = ["disk: blocks are not written: broken 0", "disk: blocks are written again"]
    assert [record.message for record in caplog.records] == said


def test_another_trouble_is_another_line(trouble: MediumErrors, caplog: pytest.LogCaptureFixture) -> None:
    trouble.note("written", TierOutcome.FULL, "no room")
    trouble.note("read", TierOutcome.FAILED, "broken")
    trouble.note("written", TierOutcome.FAILED, "broken")
    assert len(caplog.records) == 3
    assert trouble.words == "blocks are not written: broken; blocks are not read: broken"
    trouble.note("read", TierOutcome.DONE, "")
    assert trouble.words == "blocks are not written: broken"


def test_a_miss_is_no_trouble_and_each_damage_is_told(
    trouble: MediumErrors, caplog: pytest.LogCaptureFixture
) -> None:
    trouble.note("read", TierOutcome.MISSING, "gone")
    assert not caplog.records
    for _ in range(2):
        trouble.note("read", TierOutcome.CORRUPT, "a checksum is wrong")
    assert len(caplog.records) == 2
    assert trouble.words == ""
