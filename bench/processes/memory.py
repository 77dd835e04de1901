"""How the memory of running processes grows."""

from collections.abc import Mapping
from statistics import median

import psutil

# What is read before this share of the samples is a start that fills caches.
_WARM_SHARE = 0.3
_COMPARED_SHARE = 0.2


class MemoryWatch:
    """Private memory (USS: without what processes share) of named processes with their children."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._families = {name: _family(pid) for name, pid in pids.items()}
        self._mib: dict[str, list[float]] = {name: [] for name in pids}

    def sample(self) -> None:
        for name, family in self._families.items():
            uss = sum(process.memory_full_info().uss for process in family)
            self._mib[name].append(uss / 2**20)

    def growth_mib(self) -> dict[str, float]:
        """From when they were warm to the end: medians of a fifth of the samples."""
        return {name: _growth(samples) for name, samples in self._mib.items()}

    def last_mib(self) -> dict[str, float]:
        return {name: samples[-1] for name, samples in self._mib.items()}


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _growth(samples: list[float]) -> float:
    warm, some = int(len(samples) * _WARM_SHARE), max(1, int(len(samples) * _COMPARED_SHARE))
    return median(samples[-some:]) - median(samples[warm : warm + some])
