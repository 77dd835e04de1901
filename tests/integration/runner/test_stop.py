"""The supervisor with fake roles: the ordered stop, and the forced one."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[..., Any]
Alive = Callable[[int], bool]
STUBBORN = {"ignore_term": True, "grandchild": "stubborn"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_roles_stop_in_order_each_when_the_one_before_is_gone(
    start: Start, is_alive: Alive, number: signal.Signals
) -> None:
    names = ["kvmanager-0", "router-0", "decode-0", "apiserver-0"]
    slow = {"slow_stop_seconds": 0.2}
    cluster = start(*names, behave=dict.fromkeys(names, slow))
    cluster.until_ready()
    cluster.process.send_signal(number)
    assert cluster.exit_code() == 0
    order = [
        (kind, name)
        for name in reversed(["kvmanager-0", "router-0", "decode-0", "apiserver-0"])
        for kind in ("asked", "stopped")
    ]
    assert cluster.order("asked", "stopped") == order
    assert "Stopping; once more to force." in cluster.output()
    assert not any(map(is_alive, cluster.pids()))
    assert cluster.state() is None


def test_a_second_signal_forces(start: Start, is_alive: Alive) -> None:
    cluster = start("router-0", "decode-0", behave={"decode-0": STUBBORN})
    cluster.until_ready()
    cluster.process.send_signal(signal.SIGINT)
    cluster.until(lambda: cluster.order("asked") == [("asked", "decode-0")], "the first signal")
    assert cluster.state().stand == "stopping"
    assert is_alive(cluster.pids(name="decode-0")[0])
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.exit_code() == 130
    assert not any(map(is_alive, (*cluster.pids(), *cluster.pids("grandchild"))))
    assert cluster.state() is None


def test_a_role_that_ignores_sigterm_is_killed_at_its_deadline(start: Start, is_alive: Alive) -> None:
    cluster = start("router-0", behave={"router-0": STUBBORN})
    cluster.until_ready()
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert "it did not stop in time" in cluster.output()
    assert not any(map(is_alive, (*cluster.pids(), *cluster.pids("grandchild"))))


def test_a_signal_during_the_start_stops_what_was_started(start: Start, is_alive: Alive) -> None:
    cluster = start("kvmanager-0", "router-0", "decode-0", behave={"router-0": {"ready": False}})
    cluster.until(lambda: len(cluster.pids()) == 2, "the start of two roles")
    cluster.until(lambda: {role["stand"] for role in cluster.state().roles[:1]} == {"ready"}, "one is ready")
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert cluster.order("stopped") == [("stopped", "router-0"), ("stopped", "kvmanager-0")]
    assert cluster.pids(name="decode-0") == []
    assert not any(map(is_alive, cluster.pids()))


def test_a_signal_while_a_role_waits_for_its_restart_starts_it_no_more(start: Start) -> None:
    cluster = start("router-0")
    cluster.until_ready()
    cluster.crash("router-0")
    cluster.until_said("again in")
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert len(cluster.pids()) == 1
