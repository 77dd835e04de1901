"""Which loads are checked against the block's checksum, and what a checksum is."""

from dataclasses import dataclass, field
from enum import StrEnum


class CheckPolicy(StrEnum):
    """always: no other bytes than were written are ever used. The others trust that every writer stops in
    time (tier.py: quarantine), and that memory keeps what it was given."""

    ALWAYS = "always"
    SAMPLED = "sampled"
    OFF = "off"


@dataclass(slots=True)
class Checks:
    """Chooses the loads to check. Of sampled ones, the first and then one of `every`."""

    policy: CheckPolicy = CheckPolicy.ALWAYS
    every: int = 16
    _seen: int = field(default=0)

    def next(self) -> bool:
        self._seen += 1
        if self.policy is CheckPolicy.SAMPLED:
            return self._seen % self.every == 1 % self.every
        return self.policy is CheckPolicy.ALWAYS
