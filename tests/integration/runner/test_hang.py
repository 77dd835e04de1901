"""The supervisor with fake roles: what does not answer is killed and started again."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from bench.ports import free_port

Start = Callable[..., Any]
HANG_SECONDS = 3.0


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


def _stands(cluster: Any) -> set[str]:
    return {str(role["stand"]) for role in cluster.state().roles}


def test_a_stopped_process_is_killed_and_started_again_alone(start: Start, address: str) -> None:
    http = {"apiserver-0": address}
    cluster = start("router-0", "apiserver-0", http=http, hang_seconds=HANG_SECONDS)
    cluster.until_ready()
    cluster.until(lambda: cluster.pids("answered"), "the first answer")
    (first,), (router,) = cluster.pids(name="apiserver-0"), cluster.pids(name="router-0")
    began = time.monotonic()
    os.kill(first, signal.SIGSTOP)
    cluster.until(lambda: len(cluster.pids(name="apiserver-0")) == 2, "the restart")
    assert time.monotonic() - began >= HANG_SECONDS - 1
    cluster.until(lambda: _stands(cluster) == {"ready"}, "ready again")
    assert "is killed: it has not answered for" in cluster.output()
    assert cluster.pids(name="router-0") == [router]


def test_a_cluster_that_was_stopped_as_a_whole_goes_on(start: Start, address: str) -> None:
    """As when the machine was suspended, or its container paused."""
    cluster = start("apiserver-0", http={"apiserver-0": address}, hang_seconds=HANG_SECONDS)
    cluster.until(lambda: cluster.pids("answered"), "the first answer")
    cluster.until_ready()
    both = (cluster.pids()[0], cluster.process.pid)
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(HANG_SECONDS + 2)
    for pid in reversed(both):  # the watcher wakes up first
        os.kill(pid, signal.SIGCONT)
    time.sleep(HANG_SECONDS + 1)
    assert len(cluster.pids()) == 1
    assert _stands(cluster) == {"ready"}


def test_a_stopped_supervisor_hears_that_it_is_to_stop(start: Start) -> None:
    cluster = start("router-0")
    cluster.until_ready()
    cluster.process.send_signal(signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGCONT):  # as `llmserve down` does
        cluster.process.send_signal(number)
    assert cluster.exit_code() == 0
