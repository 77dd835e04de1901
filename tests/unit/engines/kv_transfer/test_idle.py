"""The hand-over thread must cost nothing while nothing is handed over."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from llmserve.transfer.engine import engine
from tests.support.idle import cpu_seconds_at_rest

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]


def _cpu_seconds() -> float:
    total = 0.0
    for thread in threading.enumerate():
        if thread.name.startswith("kv-") and thread.ident is not None:
            total += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return total


def test_an_idle_node_sleeps_also_with_leases_out(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    reader.pull(owner.grant("p1", [1]), [2])
    assert reader.result().ok
    reader.probed(owner)
    owner.grant("p2", [3])
    assert cpu_seconds_at_rest(_cpu_seconds, 0.3, most=0.003) < 0.003


def test_peers_are_served_from_hello_to_release_only(
    make_side: Make, gated: Make, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the look of each second, of which there is only the first here."""
    monkeypatch.setattr(engine, "_REST_SECONDS", 3600.0)
    owner = make_side(1, far := gated())
    reader = make_side(2, near := gated())
    wait_until(lambda: far.progressed == near.progressed == engine._REST_STEPS)
    owner.grant("p0", [7])
    assert far.progressed == engine._REST_STEPS, "a lease alone needs no progress"
    reader.pull(owner.grant("p1", [1]), [2])
    assert near.started.wait(30)
    served = far.progressed
    wait_until(lambda: far.progressed > served + 5)
    near.gate.set()
    assert reader.result().ok
    owner.node._engine.call(_forget_hello(owner.node._engine))
    wait_until(lambda: owner.node._engine._pump.done())
    assert near.progressed == engine._REST_STEPS, "the reader polls, nobody reads from it"


async def _forget_hello(io: Any) -> None:
    for connection, what in list(io._expected):
        if what in ("", "probe"):
            io.dismiss(connection, what)


def test_a_reader_that_leaves_is_served_no_more(make_side: Make, gated: Make, wait_until: Wait) -> None:
    owner = make_side(1, far := gated())
    reader = make_side(2, near := gated())
    reader.pull(owner.grant("p1", [1]), [2])
    assert near.started.wait(30)
    reader.node.close()
    wait_until(lambda: owner.node._engine._pump.done())
    assert not owner.node._engine._expected
    assert far.progressed > 0
