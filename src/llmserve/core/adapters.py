"""A LoRA adapter as every process of a cluster knows it.

Clients name an adapter; the cluster names its contents. A version is the digest of an adapter's weights and
configuration (models/adapters), and block hashes, namespaces, placements and engines know versions only. A
name is a pointer to a version. Loading other weights under a name makes a new version, so that no request
ever reads KV, or runs on weights, of another one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.ids import AdapterDigest

BASE_MODEL = AdapterDigest("")  # the version of a request without an adapter
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN_DIGITS = 12  # enough to tell versions apart


class AdapterState(StrEnum):
    """The life of a version in a cluster. registered: its source is known, its digest may not be. fetching:
    workers fetch and check it. ready: every worker that serves the model has confirmed it. draining: no name
    points to it any more, and requests that have it go on. gone: no worker holds it. failed: its source is
    unusable."""

    REGISTERED = "registered"
    FETCHING = "fetching"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"


class AdapterTier(StrEnum):
    """Where a worker has a version, the fastest place first. dram and disk are shared by the workers of a
    host. source: nowhere on this host, but it can be fetched."""

    DEVICE = "device"
    DRAM = "dram"
    DISK = "disk"
    SOURCE = "source"

    def is_at_least(self, other: "AdapterTier") -> bool:
        """Returns whether this tier is as near to the engine as another one, or nearer."""
        return nearest(self, other) is self


def nearest(*tiers: AdapterTier) -> AdapterTier:
    """Returns the fastest of some tiers."""
    return min(tiers, key=tuple(AdapterTier).index)


@dataclass(frozen=True, slots=True)
class AdapterOrder:
    """What a router orders a worker to hold: a version, at least as near as `tier`. number: that of its
    registration, by which the worker reports it; a later registration has a larger number. digest: empty
    while nobody has computed it: the worker that has the order computes it. pinned: the version stays in that
    tier. asked: how often a device slot was asked for; when the number grows, a version that has lost its
    slot gets one again."""

    number: int
    source: str
    digest: AdapterDigest = BASE_MODEL
    tier: AdapterTier = AdapterTier.DISK
    pinned: bool = False
    asked: int = 0


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What a worker answers to the order of this number. digest, rank, size_bytes: empty or 0 until it was
    fetched and checked. running: requests that hold it here. load_seconds: how long its last load into a
    device slot took; 0: there was none. error: name of a class of core/errors.py with `message`, when it
    cannot be had."""

    number: int
    digest: AdapterDigest = BASE_MODEL
    rank: int = 0
    size_bytes: int = 0
    tier: AdapterTier = AdapterTier.SOURCE
    running: int = 0
    load_seconds: float = 0.0
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class AdapterReports:
    """What a worker tells a router at once. changes_only: other reports are as the router heard them last;
    else there are no others. ended: with changes_only, the numbers of those that there are no longer."""

    reports: tuple[AdapterReport, ...] = ()
    changes_only: bool = False
    ended: tuple[int, ...] = ()

    @classmethod
    def since(
        cls, before: Mapping[int, AdapterReport] | None, now: Mapping[int, AdapterReport]
    ) -> "AdapterReports | None":
        """Returns what a router that knows the reports of before has to hear; None: nothing. before: None:
        nobody can say what it knows."""
        if before is None:
            return cls(tuple(now.values()))
        changed = tuple(report for number, report in now.items() if report != before.get(number))
        ended = tuple(number for number in before if number not in now)
        return cls(changed, True, ended) if changed or ended else None

    def applied_to(self, before: Mapping[int, AdapterReport]) -> dict[int, AdapterReport]:
        """Returns all reports by number. before: those that were heard last."""
        kept = dict(before) if self.changes_only else {}
        kept |= {report.number: report for report in self.reports}
        for number in self.ended:
            kept.pop(number, None)
        return kept


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """How the version of a request came into a device slot of its worker. tier: where it was when the request
    came. seconds: time for which the request waited for it; 0: it was loaded already."""

    tier: AdapterTier
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """A name that clients may use now, and the version that it points to. parent: the model's name. number:
    of the registration; larger ones are later."""

    name: str
    digest: AdapterDigest
    parent: str
    source: str = ""
    rank: int = 0
    size_bytes: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What adapters an engine can run. slots: versions at the same time; 0: none. target_modules: the names
    of the modules that may be adapted; empty: all that the model supports."""

    slots: int = 0
    max_rank: int = 0
    target_modules: tuple[str, ...] = ()


NO_ADAPTERS = LoraShape()


def is_digest(text: str) -> bool:
    """Returns whether this is the digest of an adapter: 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def short_version(digest: str) -> str:
    """Returns what users are shown of a digest."""
    return digest[:_SHOWN_DIGITS]


def engine_path(digest: AdapterDigest) -> str:
    """The path by which engines name a version in block hashes. vLLM hashes an adapter's name and path with
    every block, and hosts keep files in different places, so this is the same text everywhere. Nothing is
    read from it."""
    return f"/llmserve/adapters/{digest}"
