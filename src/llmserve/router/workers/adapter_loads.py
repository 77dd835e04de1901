"""How long workers take to load an adapter into a device slot, measured by what they report. Pure."""

from collections.abc import Mapping

from llmserve.core.adapters import AdapterReport, AdapterTier
from llmserve.core.ids import AdapterDigest
from llmserve.router.workers.latency import LineFit

# Where nothing is known yet: seconds of one load, and of each MB of it. A few loads correct it.
_FIRST = {
    AdapterTier.DRAM: (0.02, 1 / 2000),
    AdapterTier.DISK: (0.03, 1 / 500),
    AdapterTier.SOURCE: (1.0, 1 / 50),
}
_TYPICAL_MB = 30.0


class AdapterLoads:
    """Seconds of a load by the tier that it comes from, and by the size of the adapter."""

    def __init__(self) -> None:
        self._lines = {tier: LineFit(*first, _TYPICAL_MB) for tier, first in _FIRST.items()}

    def seconds(self, report: AdapterReport | None) -> float:
        """Predicted time until a worker that reports this has the version in a slot. None: it says nothing
        of it, so the version has to come from its source."""
        if report is None:
            return self._lines[AdapterTier.SOURCE].seconds(_TYPICAL_MB)
        line = self._lines.get(report.tier)
        return line.seconds(_megabytes(report)) if line else 0.0

    def learn(
        self, before: Mapping[AdapterDigest, AdapterReport], after: Mapping[AdapterDigest, AdapterReport]
    ) -> None:
        """before, after: two successive reports of one worker. A load that is new came from where the version
        was before."""
        for digest, report in after.items():
            old = before.get(digest)
            if old is None or report.load_seconds in (0.0, old.load_seconds):
                continue
            if line := self._lines.get(old.tier):
                line.learn(_megabytes(report), report.load_seconds)


def _megabytes(report: AdapterReport) -> float:
    """The size of an adapter; a typical one while it is unknown."""
    return report.size_bytes / 1e6 or _TYPICAL_MB
