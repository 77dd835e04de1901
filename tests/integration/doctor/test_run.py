"""Trials in real processes: those that work, and those that crash, hang or lie."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmserve.doctor.measure import COPY, READ, SOCKET, known_bytes
from llmserve.doctor.trial import BASELINE, NEAR, TrialOutcome, TrialReport, run_trial
from tests.integration.doctor.conftest import PretendModule, PretendNixl


def test_tcp_is_measured() -> None:
    answer = run_trial(*NEAR, "tcp")
    assert (answer.outcome, answer.reason) == (TrialOutcome.MEASURED, "")
    assert answer.rates[READ] > 1e7


def test_the_baseline_is_measured() -> None:
    answer = run_trial(*BASELINE)
    assert answer.outcome is TrialOutcome.MEASURED
    assert set(answer.rates) == {COPY, SOCKET}
    assert min(answer.rates.values()) > 1e7


def test_a_transport_that_cannot_be_imported(pretend_nixl: PretendNixl) -> None:
    pretend_nixl("raise ImportError('libucp.so.0: cannot open shared object file')")
    answer = run_trial(*NEAR, "nixl")
    assert answer.outcome is TrialOutcome.UNAVAILABLE
    assert "libucp.so.0" in answer.reason


def test_a_library_that_crashes(pretend_nixl: PretendNixl) -> None:
    pretend_nixl("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    answer = run_trial(*NEAR, "nixl")
    assert (answer.outcome, answer.reason) == (TrialOutcome.CRASHED, "killed by SIGSEGV")


def test_a_crash_leaves_no_core_dump(pretend_nixl: PretendNixl) -> None:
    pretend_nixl("import resource\nraise ImportError(f'core {resource.getrlimit(resource.RLIMIT_CORE)}')")
    assert run_trial(*NEAR, "nixl").reason.endswith("core (0, 0)")


def test_a_library_that_raises_what_nobody_expects(pretend_nixl: PretendNixl) -> None:
    pretend_nixl("raise RuntimeError('no such device')")
    answer = run_trial(*NEAR, "nixl")
    assert (answer.outcome, answer.reason) == (
        TrialOutcome.CRASHED,
        "exit code 1: RuntimeError: no such device",
    )


def test_a_library_that_hangs_is_ended_with_all_its_processes(
    pretend_nixl: PretendNixl, tmp_path: Path
) -> None:
    pretend_nixl(f"import os, time\nopen(f'{tmp_path}/{{os.getpid()}}.pid', 'w')\ntime.sleep(600)")
    answer = run_trial(*NEAR, "nixl", seconds=3.0)
    assert (answer.outcome, answer.reason) == (TrialOutcome.HUNG, "no answer within 3 s, while loading")
    pids = [path.stem for path in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    assert not [pid for pid in pids if _lives(pid)]


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_shared_memory_of_what_was_ended_is_removed(pretend_trial: PretendModule, tmp_path: Path) -> None:
    name = f"llmserve-doctor-test-{tmp_path.name}"
    code = f"import mmap, time\nfile = open('/dev/shm/{name}', 'wb+')\nfile.truncate(4096)\n"
    answer = run_trial(
        pretend_trial(code + "mapped = mmap.mmap(file.fileno(), 4096)\ntime.sleep(600)"), seconds=1.5
    )
    assert (answer.outcome, answer.reason) == (TrialOutcome.HUNG, "no answer within 1.5 s, while starting")
    assert not Path("/dev/shm", name).exists()


def test_a_trial_ends_with_the_process_that_wanted_it(pretend_trial: PretendModule, tmp_path: Path) -> None:
    """Even with one that is killed."""
    pid_file = tmp_path / "pid"
    code = "import os, time\nfrom llmserve.doctor.measure import end_with_stdin\nend_with_stdin()\n"
    name = pretend_trial(code + f"open('{pid_file}', 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)")
    wanting = f"from llmserve.doctor.trial import run_trial\nrun_trial('{name}')"
    with subprocess.Popen([sys.executable, "-c", wanting]) as process:
        try:
            _until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        finally:
            process.kill()
    _until(lambda: not _lives(pid_file.read_text().strip()))


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_far_end_that_dies(pretend_trial: PretendModule) -> None:
    code = (
        "from llmserve.doctor import measure as pair\n"
        "pair.MODULE = 'llmserve.no_such_module'\npair.near('tcp')\n"
    )
    answer = run_trial(pretend_trial(code), "tcp")
    assert (answer.outcome, answer.reason) == (TrialOutcome.FAILED, "the process at the other end ended")


def test_wrong_bytes_are_no_success(pretend_trial: PretendModule) -> None:
    """The near end expects other bytes than those that the far end holds."""
    code = (
        "import numpy as np\nfrom llmserve.doctor import measure as pair\n"
        "pair.known_bytes = lambda: np.zeros(pair.BYTES, np.uint8)\npair.near('tcp')\n"
    )
    answer = run_trial(pretend_trial(code), "tcp")
    assert (answer.outcome, answer.reason) == (
        TrialOutcome.FAILED,
        "the bytes that arrived are not those that were sent",
    )


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    answer = run_trial(*NEAR, "tcp")
    assert answer.outcome is TrialOutcome.CRASHED
    assert "cannot be started" in answer.reason


def test_known_bytes_are_known() -> None:
    assert np.array_equal(known_bytes(), known_bytes())
    assert len(set(known_bytes()[:1000].tolist())) > 100
    assert TrialReport.heard("") is None
