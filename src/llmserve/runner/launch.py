"""python -I -S launch.py PARENT CORES PROGRAM ...: becomes PROGRAM, tied to its parent and its cores.

A process of its own, because code between fork and exec is not safe in a supervisor with threads.
PARENT is the pid whose death ends this process too (by SIGTERM); CORES is `0,1`, or `-` for any.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    parent, cores, program = int(argv[0]), argv[1], argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
