"""What is counted of processes; imports of large libraries."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from llmserve.core.process import (
    Effort,
    WorkMeter,
    descendants,
    importing,
    read_effort,
    settle_collector,
)

NOTHING = Effort(cpu_seconds=1.0, major_faults=7, stopped=False, wants_to_run=False)


@pytest.mark.parametrize(
    ("later", "works"),
    [
        (NOTHING, False),
        (NOTHING._replace(cpu_seconds=1.05), False),
        (NOTHING._replace(cpu_seconds=1.2), True),
        (NOTHING._replace(major_faults=8), True),
        (NOTHING._replace(wants_to_run=True), True),
        (NOTHING._replace(cpu_seconds=2.0, wants_to_run=True, stopped=True), False),
    ],
    ids=["sleeps", "polls", "computes", "swaps", "waits for a core", "waits for one that is stopped"],
)
def test_what_counts_as_work(later: Effort, works: bool) -> None:
    assert later.works_since(NOTHING, 1.0) is works


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen((sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    yield process
    process.kill()
    process.wait()


def _until_stopped(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not read_effort([pid]).stopped:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_stopped_process_is_seen_from_outside(sleeper: subprocess.Popen[bytes]) -> None:
    assert sleeper.pid in descendants(os.getpid())
    works = WorkMeter(lambda: [sleeper.pid])
    assert works(), "nothing is known yet"
    sleeper.send_signal(signal.SIGSTOP)
    _until_stopped(sleeper.pid)
    assert not works()


def test_what_has_ended_counts_as_nothing() -> None:
    assert read_effort([2**22 + 1]) == Effort(0.0, 0, stopped=False, wants_to_run=False)


def test_this_process_works() -> None:
    assert read_effort([os.getpid()]).wants_to_run


@pytest.fixture(autouse=True)
def thawed() -> None:
    gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_and_is_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
        gc.unfreeze()


def test_what_was_imported_is_not_looked_at_again() -> None:
    with importing():
        kept: list[list[int]] = [[] for _ in range(1000)]  # as modules make them
    assert gc.get_freeze_count() >= len(kept)
    gc.unfreeze()


def test_a_process_that_is_ready_is_seldom_looked_at() -> None:
    before = gc.get_threshold()
    try:
        settle_collector()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > before[0]
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()
