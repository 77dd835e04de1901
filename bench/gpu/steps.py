"""What the steps of the GPU check share, and the process of one step.

`python -m bench.gpu.steps MODULE:FUNCTION RESULT [--fake]` runs one step. The result is written anew after
each figure, so that a step that is stopped keeps what it has measured.
"""

import argparse
import importlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import Int64Array, Region
from llmserve.transfer.devices import Copies, HostCopies
from llmserve.transfer.devices.cuda import CudaCopies
from llmserve.transfer.devices.fake import FakeDevice

MIB = 1 << 20
_FAKE_LATENESS_SECONDS = 0.0001


class StepSkipped(Exception):
    """This machine lacks what the step needs."""


@dataclass(slots=True)
class StepReport:
    """What a step has found so far."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    goals: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def figure(self, name: str, value: object) -> None:
        self.figures[name] = round(value, 3) if isinstance(value, float) else value
        self.save("stopped")

    def goal(self, name: str, ours: float, floor: float, least: float) -> None:
        """ours, floor: GB/s, measured in turns."""
        self.goals[name] = {"ours": ours, "floor": floor, "ratio": ours / floor, "least": least}
        self.save("stopped")

    def expect(self, what: str, is_so: bool) -> None:
        """A promise that has nothing to do with speed."""
        self.notes.setdefault("promises", {})[what] = is_so
        self.save("stopped")

    def save(self, status: str, reason: str = "") -> None:
        found = {"status": status, "figures": self.figures, "goals": self.goals, **self.notes}
        self.path.write_text(json.dumps(found | ({"reason": reason} if reason else {})))

    @property
    def verdict(self) -> str:
        if not all(self.notes.get("promises", {}).values()):
            return "failed"
        return "ok" if all(goal["ratio"] >= goal["least"] for goal in self.goals.values()) else "short"


@dataclass(frozen=True, slots=True)
class StepSetting:
    """fake: over a fake device, and with little memory."""

    fake: bool

    def copies(self, lateness_seconds: float = _FAKE_LATENESS_SECONDS) -> Copies:
        """Errors: StepSkipped without a GPU."""
        if self.fake:
            return FakeDevice(lateness_seconds=lateness_seconds)
        try:
            made = CudaCopies(0)
        except TransportUnavailable as error:
            raise StepSkipped(error.message) from error
        made.enter()
        return made

    def copies_of_nixl(self) -> Copies:
        """NIXL cannot reach a fake device: it gets host memory there."""
        return HostCopies() if self.fake else self.copies()

    def needs_cuda(self, why: str) -> None:
        """Errors: StepSkipped on a fake device, and without a GPU."""
        if self.fake:
            raise StepSkipped(why)
        self.copies()

    def size(self, real_bytes: int, fake_bytes: int) -> int:
        return fake_bytes if self.fake else real_bytes

    def repeats(self, real: int) -> int:
        return 2 if self.fake else real


def best_rate(move: Callable[[], object], total_bytes: int, repeats: int) -> float:
    """Returns the GB/s of the best of so many calls, after one that warms up."""
    move()
    return max(_rate(move, total_bytes) for _ in range(repeats))


def in_turns(
    ours: Callable[[], object], floor: Callable[[], object], total_bytes: int, repeats: int
) -> tuple[float, float]:
    """Returns the best GB/s of both, which take turns, so that a slow moment of the machine hits both."""
    ours(), floor()
    rates = [(_rate(ours, total_bytes), _rate(floor, total_bytes)) for _ in range(repeats)]
    return max(rate for rate, _ in rates), max(rate for _, rate in rates)


def _rate(move: Callable[[], object], total_bytes: int) -> float:
    started = time.perf_counter()
    move()
    return total_bytes / (time.perf_counter() - started) / 1e9


def scattered(region: Region, piece_bytes: int, count: int) -> tuple[Int64Array, Int64Array]:
    """Returns addresses and lengths of so many pieces of a region, which lie in no order."""
    slots = np.random.default_rng(7).permutation(region.length_bytes // piece_bytes)[:count]
    return region.address + slots.astype(np.int64) * piece_bytes, np.full(count, piece_bytes, np.int64)


def whole(region: Region) -> tuple[Int64Array, Int64Array]:
    return np.array([region.address], np.int64), np.array([region.length_bytes], np.int64)


def device_tensor(region: Region) -> Any:
    """Returns a uint8 tensor over memory of a GPU."""
    import torch

    fields = {
        "shape": (region.length_bytes,),
        "typestr": "|u1",
        "data": (region.address, False),
        "version": 3,
    }
    exported = SimpleNamespace(__cuda_array_interface__=fields)
    return torch.as_tensor(exported, device=f"cuda:{region.memory.device}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("function")
    parser.add_argument("result", type=Path)
    parser.add_argument("--fake", action="store_true")
    options = parser.parse_args()
    module, _, name = options.function.partition(":")
    report = StepReport(options.result)
    try:
        getattr(importlib.import_module(module), name)(StepSetting(options.fake), report)
    except StepSkipped as skipped:
        report.save("skipped", str(skipped))
    except ModuleNotFoundError as error:
        report.save("skipped", f"the package {error.name} is not installed")
    except Exception as error:
        traceback.print_exc()
        report.save("failed", f"{type(error).__name__}: {error}"[:500])
    else:
        report.save(report.verdict)


if __name__ == "__main__":
    # This module under its own name: exceptions that other modules raise are those that are caught here.
    from bench.gpu import steps

    steps.main()
