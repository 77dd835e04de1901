"""What is idle costs no CPU time: how tests measure that, also on a machine that is busy with others."""

import time
from collections.abc import Callable

_WINDOWS = 20


def cpu_seconds_at_rest(clock: Callable[[], float], window_seconds: float, most: float) -> float:
    """Returns the growth of `clock`, which counts CPU seconds, in a window of time: in the first one in which
    it is less than `most`, else in the last one. Work that was begun before may still end in the first
    windows; a thread that spins or polls does so in each of them."""
    used = most
    for _ in range(_WINDOWS):
        before = clock()
        time.sleep(window_seconds)  # the time that passes is what is measured
        used = clock() - before
        if used < most:
            break
    return used
