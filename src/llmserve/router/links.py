"""How fast KV comes from one worker to another, as the one that fetches has measured it. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmserve.core.request import PairStatus

REFUSED = "refused"  # PairStatus.breaker of a pair whose KV does not fit


class Link(NamedTuple):
    """One direction between two workers. refused: nothing can be fetched, the prompt is computed again."""

    fixed_seconds: float
    bytes_per_second: float
    refused: bool = False

    def seconds(self, size_bytes: float) -> float:
        return self.fixed_seconds + size_bytes / self.bytes_per_second


# Of a pair that has not been probed: a network that is neither slow nor fast.
UNKNOWN_LINK = Link(0.003, 2e9)


def links_of(pairs: Sequence[PairStatus]) -> Mapping[str, Link]:
    """By peer: over the transport that the next request uses. Peers without a measurement are left out."""
    links: dict[str, Link] = {}
    for pair in pairs:
        if pair.breaker == REFUSED:
            links[pair.peer] = UNKNOWN_LINK._replace(refused=True)
        elif pair.chosen and pair.bytes_per_second > 0:
            links[pair.peer] = _measured(pair)
    return links


def _measured(pair: PairStatus) -> Link:
    """The probe tells the speed; what requests took beyond that is asking, waiting and checking."""
    fixed = pair.small_seconds
    if pair.transfers:
        seconds = (pair.seconds - pair.bytes / pair.bytes_per_second) / pair.transfers
        fixed = max(fixed, seconds)
    return Link(fixed, pair.bytes_per_second)
