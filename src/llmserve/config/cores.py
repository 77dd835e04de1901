"""Dividing what a machine has between engines. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.config.conflict import Conflict
from llmserve.config.schema import LocalDeployment


@dataclass(frozen=True, slots=True)
class Shares:
    """One share for each taker. shared: there was too little, and some things are in several shares."""

    of: tuple[tuple[int, ...], ...]
    shared: bool


def usable_cores(local: LocalDeployment, available: Sequence[int]) -> tuple[int, ...]:
    """The cores that the manifest lets the engines use. Errors: ManifestError for one that is not there."""
    if local.cores == "auto":
        return tuple(sorted(available))
    away = [core for core in local.cores if core not in available]
    if away:
        message = f"core {away[0]} is not available here (there are {ranges(available)})"
        raise Conflict((("deployment", "local", "cores"),), message).as_error()
    return local.cores


def divide(things: Sequence[int], takers: int) -> Shares:
    """Neighbouring cores for each taker, as evenly as it goes, the first ones getting what is left over.
    With fewer things than takers they take turns."""
    if not things or takers == 0:
        return Shares(((),) * takers, shared=False)
    if len(things) < takers:
        return Shares(tuple((things[i % len(things)],) for i in range(takers)), shared=True)
    each, extra = divmod(len(things), takers)
    ends = [(i + 1) * each + min(i + 1, extra) for i in range(takers)]
    starts = [0, *ends[:-1]]
    return Shares(tuple(tuple(things[a:b]) for a, b in zip(starts, ends, strict=True)), shared=False)


def deal(things: Sequence[int], takers: int, each: int) -> Shares:
    """Exactly `each` things (GPUs) for each taker, in turn; over again when they run out."""
    if not things:
        return Shares(((),) * takers, shared=False)
    shares = tuple(
        tuple(dict.fromkeys(things[(i * each + k) % len(things)] for k in range(each))) for i in range(takers)
    )
    return Shares(shares, shared=takers * each > len(things))


def ranges(cores: Sequence[int]) -> str:
    """`0-3,6`: as taskset and VLLM_CPU_OMP_THREADS_BIND write it."""
    text: list[str] = []
    ordered = sorted(set(cores))
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        text.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(text)


def omp_binding(cores: Sequence[int], ranks: int) -> str:
    """VLLM_CPU_OMP_THREADS_BIND: the cores of each rank of an engine, the ranks separated by `|`."""
    return "|".join(ranges(share) for share in divide(cores, ranks).of)
