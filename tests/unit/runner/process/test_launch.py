"""What a process of the cluster begins with (runner/process/launch.py)."""

import os
import subprocess
import sys
from functools import partial

from llmserve.runner.process import launch


def test_a_program_runs_where_its_parent_does_although_openmp_bound_the_launcher() -> None:
    cores = os.sched_getaffinity(0)
    program = (sys.executable, "-I", "-S", "-c", "import os; print(sorted(os.sched_getaffinity(0)))")
    said = subprocess.run(
        [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *program],
        preexec_fn=partial(os.sched_setaffinity, 0, {min(cores)}),
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    assert said.decode().strip() == str(sorted(cores))
