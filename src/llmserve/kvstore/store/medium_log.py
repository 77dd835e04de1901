"""What a tier's medium has done: totals, outcomes, and the errors that go on now."""

import logging
from collections import Counter

from llmserve.core.stats import TierTotals
from llmserve.kvstore.tiers.base import TierOutcome

_log = logging.getLogger(__name__)


class MediumLog:
    """Reading and writing are apart, because a disk that is full can still be read. An error is logged when
    it begins and when it ends, not for every block."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.totals = TierTotals()
        self.outcomes: Counter[tuple[str, TierOutcome]] = Counter()  # by operation
        self._ongoing: dict[str, tuple[TierOutcome, str]] = {}

    @property
    def error(self) -> str:
        """The errors that go on now, as text; empty when there is none."""
        return "; ".join(f"blocks are not {what}: {reason}" for what, (_, reason) in self._ongoing.items())

    def note(self, what: str, outcome: TierOutcome, reason: str) -> None:
        """what: "written" or "read". CORRUPT is logged each time: it is rare, and each one matters."""
        if outcome is TierOutcome.CORRUPT:
            _log.warning("%s: a block is not what was written: %s", self.tier, reason)
        elif outcome is TierOutcome.DONE:
            if self._ongoing.pop(what, None):
                _log.info("%s: blocks are %s again", self.tier, what)
        elif outcome is not TierOutcome.MISSING:
            before, self._ongoing[what] = self._ongoing.get(what), (outcome, reason)
            if before is None or before[0] is not outcome:
                _log.warning("%s: blocks are not %s: %s", self.tier, what, reason)
