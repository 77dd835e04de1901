"""One line when an error of a medium begins, one when it ends, and a text for `status` meanwhile."""

import logging

import pytest

from llmserve.kvstore.store.medium_log import MediumLog
from llmserve.kvstore.tiers.base import TierOutcome


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> MediumLog:
    caplog.set_level(logging.INFO)
    return MediumLog("disk")


def test_it_is_logged_when_it_begins_and_ends(log: MediumLog, caplog: pytest.LogCaptureFixture) -> None:
    assert log.error == ""
    for number in range(5):
        log.note("written", TierOutcome.FAILED, f"broken {number}")
    assert log.error == "blocks are not written: broken 4", "the latest"
    for _ in range(2):
        log.note("written", TierOutcome.DONE, "")
    assert log.error == ""
    said = ["disk: blocks are not written: broken 0", "disk: blocks are written again"]
    assert [record.message for record in caplog.records] == said


def test_another_error_is_another_line(log: MediumLog, caplog: pytest.LogCaptureFixture) -> None:
    log.note("written", TierOutcome.FULL, "no room")
    log.note("read", TierOutcome.FAILED, "broken")
    log.note("written", TierOutcome.FAILED, "broken")
    assert len(caplog.records) == 3
    assert log.error == "blocks are not written: broken; blocks are not read: broken"
    log.note("read", TierOutcome.DONE, "")
    assert log.error == "blocks are not written: broken"


def test_a_miss_is_no_error_and_each_damage_is_told(log: MediumLog, caplog: pytest.LogCaptureFixture) -> None:
    log.note("read", TierOutcome.MISSING, "gone")
    assert not caplog.records
    for _ in range(2):
        log.note("read", TierOutcome.CORRUPT, "a checksum is wrong")
    assert len(caplog.records) == 2
    assert log.error == ""
