"""python -I -S launch.py PARENT PROGRAM ...: becomes PROGRAM, which gets SIGTERM when PARENT dies.

It is a process of its own, because code between fork and exec is not safe in a supervisor with threads.
The program may run on the cores of PARENT: vLLM binds the threads that compute to the engine's own cores
(VLLM_CPU_OMP_THREADS_BIND), and the processes around them may use whichever core is idle.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    parent, program = int(argv[0]), argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    # An OpenMP that is preloaded has bound this process to one core, and would count no others in the next.
    os.sched_setaffinity(0, os.sched_getaffinity(parent))
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
