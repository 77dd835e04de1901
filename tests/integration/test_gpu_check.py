"""`python -m bench gpu`: over a fake device, and with steps that end in all ways."""

import json
import os
import time
from pathlib import Path

import pytest

from bench.gpu.gpu import STEPS, GpuStep, lines, run

QUICK = ["floors", "marks", "pinned arena", "pieces"]
NEEDS_CUDA = ["nixl without a device", "cuda ipc", "nccl"]


def _step(name: str, seconds: float = 30.0) -> GpuStep:
    return GpuStep(name, f"tests.integration.gpu_steps:{name}", seconds)


def _ended(name: str, seconds: float = 30.0) -> dict[str, object]:
    (line,) = lines([_step(name, seconds)], fake=True, seconds=60)
    return line


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("ends_well", "ok", "0.95"),
        ("misses_its_goal", "short", "0.85"),
        ("breaks_a_promise", "failed", "no stale byte"),
        ("raises", "failed", "ValueError: something is wrong"),
        ("crashes", "crashed", "exit code -6"),
        ("lacks_a_device", "skipped", "there is no GPU 0"),
        ("lacks_a_package", "skipped", "the package nixl is not installed"),
    ],
)
def test_how_a_step_ends(name: str, status: str, said: str) -> None:
    line = _ended(name)
    assert line["status"] == status
    assert said in json.dumps(line)


def test_a_step_that_crashes_keeps_what_it_had_measured() -> None:
    assert _ended("crashes")["figures"] == {"before": 1}


def test_a_step_that_hangs_is_stopped_with_its_processes() -> None:
    line = _ended("hangs", seconds=5.0)
    assert (line["status"], line["reason"]) == ("stopped", "it ran longer than 5 s")
    figures = line["figures"]
    assert isinstance(figures, dict)
    assert _is_gone(figures["child"])


def _is_gone(pid: int) -> bool:
    """A process that is killed may be a zombie until its new parent has looked."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (OSError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_steps_for_which_there_is_no_time_are_skipped() -> None:
    found = list(lines([_step("ends_well"), _step("ends_well")], fake=True, seconds=0.0))
    assert [line["status"] for line in found] == ["skipped"] * 2


def test_limits_of_all_steps_fit_a_machine_that_is_at_hand_for_minutes() -> None:
    """Steps seldom take their limits: a cut costs the last ones, which are worth the least."""
    assert sum(step.seconds for step in STEPS) < 600
    assert max(step.seconds for step in STEPS) < 120


def test_the_check_passes_over_a_fake_device(tmp_path: Path) -> None:
    table = run(fake=True, steps=[*QUICK, *NEEDS_CUDA], seconds=120, out=tmp_path)
    found = {
        line["step"]: line for line in map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    }
    assert {name: found[name]["status"] for name in QUICK} == dict.fromkeys(QUICK, "ok"), found
    assert {name: found[name]["status"] for name in NEEDS_CUDA} == dict.fromkeys(NEEDS_CUDA, "skipped")
    assert all("CUDA" in found[name]["reason"] for name in NEEDS_CUDA)
    assert table.count("\n") == len(QUICK) + len(NEEDS_CUDA) + 1


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured() -> None:
    (line,) = lines([step for step in STEPS if step.name == "floors"], fake=False, seconds=60)
    assert (line["status"], line["reason"]) == ("skipped", "cuda: there is no GPU 0")
