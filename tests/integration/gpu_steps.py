"""Steps for tests/integration/test_gpu_check.py, which end in all the ways in which a step can end."""

import os
import subprocess
import sys
import time

from bench.gpu.steps import StepReport, StepSetting, StepSkipped


def ends_well(_: StepSetting, report: StepReport) -> None:
    report.goal("copies", 9.5, 10.0, least=0.9)


def misses_its_goal(_: StepSetting, report: StepReport) -> None:
    report.goal("copies", 8.5, 10.0, least=0.9)


def breaks_a_promise(_: StepSetting, report: StepReport) -> None:
    report.expect("no stale byte", False)


def raises(_: StepSetting, report: StepReport) -> None:
    raise ValueError("something is wrong")


def crashes(_: StepSetting, report: StepReport) -> None:
    report.figure("before", 1)
    os.abort()


def hangs(_: StepSetting, report: StepReport) -> None:
    """Its child must end with it."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    report.figure("child", child.pid)
    time.sleep(600)


def lacks_a_device(_: StepSetting, report: StepReport) -> None:
    raise StepSkipped("there is no GPU 0")


def lacks_a_package(_: StepSetting, report: StepReport) -> None:
    raise ModuleNotFoundError("No module named 'nixl'", name="nixl")
