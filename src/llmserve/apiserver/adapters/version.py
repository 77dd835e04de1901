"""The version of an adapter on which a request runs."""

from collections.abc import Callable

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest


class RequestVersion:
    """What all sequences of an HTTP request share, so that its answer is of one version. present: returns
    what the request's name means now, None when it means none. By default the request named the version
    itself, or no adapter.

    vLLM's layer looks the name up at the start of a request. Until the router is asked for a place, seconds
    may pass, in which the name may move on and the version may go."""

    def __init__(
        self,
        digest: AdapterDigest = BASE_MODEL,
        present: Callable[[], AdapterDigest | None] = lambda: None,
    ) -> None:
        self.digest, self._present = digest, present
        self._settled = False

    def settle(self) -> None:
        """A sequence has a place: the version stays the same for all of them, through retries and
        replays."""
        self._settled = True

    def moves_on(self, refused: AdapterDigest) -> bool:
        """Returns whether to ask for a place with `digest` now that the router has refused a version. It
        moves at most once."""
        if self.digest == refused and not self._settled:
            self._settled = True
            self.digest = self._present() or refused
        return self.digest != refused
