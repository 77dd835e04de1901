"""The log of a medium's trouble: its begin and its end, not every blob of it."""

import logging
from collections.abc import Sequence

from llmserve.kvstore.tiers.base import BlobResult, Outcome

_log = logging.getLogger(__name__)
_QUIET = (Outcome.DONE, Outcome.MISSING)


class TroubleLog:
    """CORRUPT is logged each time: it is rare, and each one matters."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ongoing: dict[str, Outcome] = {}

    def note(self, what: str, results: Sequence[BlobResult]) -> None:
        """what: "written" or "read"."""
        for result in results:
            if result.outcome is Outcome.CORRUPT:
                _log.warning("%s: a blob is not what was written: %s", self._name, result.reason)
            elif result.outcome in _QUIET:
                self._note_good(what, result)
            elif self._ongoing.get(what) is not result.outcome:
                self._ongoing[what] = result.outcome
                _log.warning("%s: blobs are not %s: %s", self._name, what, result.reason)

    def _note_good(self, what: str, result: BlobResult) -> None:
        if result.outcome is Outcome.DONE and what in self._ongoing:
            del self._ongoing[what]
            _log.info("%s: blobs are %s again", self._name, what)
