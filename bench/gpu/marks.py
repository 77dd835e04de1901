"""Step: what a reader sees before and after the mark of the kernel that computes the bytes."""

import time

import numpy as np

from bench.gpu.ends import DeviceEnd, batch, launch_late, pair
from bench.gpu.steps import MIB, StepReport, StepSetting, whole

_OLD, _ROUNDS = 1, 5
_SAMPLES = 1000


def marks(setting: StepSetting, report: StepReport) -> None:
    size = setting.size(64 * MIB, 4 * MIB)
    end = DeviceEnd(setting, "tcp", size)
    try:
        _one_process(end, report)
        _cost(end, report)
    finally:
        end.close()
    with pair(setting, "tcp", size) as (near, far, peer):
        for wait in (True, False):
            stale = 0
            for turn in range(_ROUNDS):
                far.ask("compute", _OLD, True)
                far.ask("compute", 2 + turn, wait)
                near.must_move("read", peer, batch(size))
                stale += size - near.count(2 + turn)
                far.ask("compute", _OLD, True)
            report.figure(f"stale bytes over tcp, {'with' if wait else 'without'} marks", stale)
            report.expect(
                "no stale byte with marks" if wait else "stale bytes without marks", (stale == 0) is wait
            )


def _one_process(end: DeviceEnd, report: StepReport) -> None:
    """A copy of the staging's stream, beside a kernel that runs 50 ms on another one."""
    end.fill(_OLD)
    starts, lengths = whole(end.region)
    before, after = end.copies.pinned(end.region.length_bytes), end.copies.pinned(end.region.length_bytes)
    mark = launch_late(end.copies, end.region, 2)
    end.copies.gather(starts, lengths, before).wait()
    report.expect("a copy before the mark shows old bytes", int(np.count_nonzero(before == _OLD)) > 0)
    report.expect("the mark is not reached before its kernel has ended", not mark.reached())
    mark.wait()
    end.copies.gather(starts, lengths, after).wait()
    report.expect("a copy behind the mark shows new bytes only", bool((after == 2).all()))


def _cost(end: DeviceEnd, report: StepReport) -> None:
    started = time.perf_counter()
    made = [end.copies.mark() for _ in range(_SAMPLES)]
    report.figure("making a mark us", (time.perf_counter() - started) / _SAMPLES * 1e6)
    made[-1].wait()
    started = time.perf_counter()
    for mark in made:
        mark.reached()
    report.figure("asking a mark us", (time.perf_counter() - started) / _SAMPLES * 1e6)
