"""What the manifest says of hand-overs, as numbers for one process."""

import random
from dataclasses import dataclass
from typing import Literal

from llmserve.config.schema import TransferConfig

Verify = Literal["off", "sampled", "always"]

_SAMPLED_PIECES = 16
_LEAST_SECONDS = 0.5


_DEFAULTS = TransferConfig()


@dataclass(frozen=True, slots=True)
class TransferPolicy:
    """slow_factor: how many times faster a later transport must be to come first. slow_share: a transfer that
    runs below this share of its probed speed has failed. attempt_seconds: the longest that a round of reads
    may take at all. bytes_per_second: of all pulls of this process; None: no limit."""

    slow_factor: float = _DEFAULTS.slow_factor
    slow_share: float = _DEFAULTS.slow_share
    attempt_seconds: float = 10.0
    verify: Verify = _DEFAULTS.verify
    bytes_per_second: float | None = None

    def limit_seconds(self, expected: float | None) -> float:
        """When a read that should take `expected` seconds (None: unknown) has failed. Never below 0.5 s:
        a busy machine stalls for that long without any fault."""
        if expected is None:
            return self.attempt_seconds
        return min(self.attempt_seconds, max(_LEAST_SECONDS, expected / self.slow_share))

    def sample(self) -> "Sample":
        """For the pieces of a push, which come in several batches."""
        return Sample(self.verify, random.randrange(_SAMPLED_PIECES))

    def verified_pieces(self, pieces: int) -> slice:
        """Which pieces of a batch are compared with their owner's: none, every 16th, or all."""
        if self.verify == "off" or not pieces:
            return slice(0, 0)
        if self.verify == "always":
            return slice(0, pieces)
        return slice(random.randrange(min(pieces, _SAMPLED_PIECES)), pieces, _SAMPLED_PIECES)


@dataclass(slots=True)
class Sample:
    """Of the pieces of several batches, as of one: none, all, or every 16th from number `next_piece` on."""

    verify: Verify
    next_piece: int

    def take(self, pieces: int) -> slice:
        """Which of the next batch's."""
        if self.verify != "sampled":
            return slice(0, pieces if self.verify == "always" else 0)
        first, self.next_piece = self.next_piece, (self.next_piece - pieces) % _SAMPLED_PIECES
        return slice(first, pieces, _SAMPLED_PIECES)
