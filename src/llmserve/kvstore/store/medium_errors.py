"""What ails the medium of a tier: logged when it begins and when it ends, not for every block of it."""

import logging

from llmserve.kvstore.tiers.base import TierOutcome

_log = logging.getLogger(__name__)


class MediumErrors:
    """Reading and writing apart: a disk that is full can still be read."""

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._ongoing: dict[str, tuple[TierOutcome, str]] = {}

    @property
    def words(self) -> str:
        """What goes on now; empty when all is well."""
        return "; ".join(f"blocks are not {what}: {reason}" for what, (_, reason) in self._ongoing.items())

    def note(self, what: str, outcome: TierOutcome, reason: str) -> None:
        """what: "written" or "read". CORRUPT is logged each time: it is rare, and each one matters."""
        if outcome is TierOutcome.CORRUPT:
            _log.warning("%s: a block is not what was written: %s", self._tier, reason)
        elif outcome is TierOutcome.DONE:
            if self._ongoing.pop(what, None):
                _log.info("%s: blocks are %s again", self._tier, what)
        elif outcome is not TierOutcome.MISSING:
            before, self._ongoing[what] = self._ongoing.get(what), (outcome, reason)
            if before is None or before[0] is not outcome:
                _log.warning("%s: blocks are not %s: %s", self._tier, what, reason)
