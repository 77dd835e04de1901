"""Whether this router may decide, and for how long it may without asking anybody."""

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TermTimes:
    """lease_seconds: after which another may lead unless the lease was renewed, which is tried every
    renew_seconds; inf: there are no others. poll_seconds: how often a standby tries to lead.
    call_seconds: of each call to the shared state, or to another router. settle_seconds: a new leader
    listens this long before it places anything. save_seconds: between two savings at least.
    So a leader that was killed is followed within lease + poll + settle seconds."""

    lease_seconds: float = 2.0
    renew_seconds: float = 0.4
    poll_seconds: float = 0.1
    call_seconds: float = 0.4
    settle_seconds: float = 0.4
    save_seconds: float = 0.1

    @property
    def shared(self) -> bool:
        return math.isfinite(self.lease_seconds)

    @property
    def usable_seconds(self) -> float:
        """Of a lease, since it was asked for: clocks may run a tenth faster or slower."""
        return self.lease_seconds * 0.9

    @property
    def sign_of_life_seconds(self) -> float | None:
        """How often apiservers are to hear from the leader; None: there is no other they could turn to."""
        return self.renew_seconds if self.shared else None


ALONE = TermTimes(lease_seconds=math.inf, renew_seconds=3600.0, settle_seconds=0.0)


@dataclass(frozen=True, slots=True)
class Standing:
    """leader: its address, empty while it is not known. epoch: of the term, 0 unless this router leads.
    trouble: why the shared state is not used now, or empty."""

    leads: bool
    leader: str
    epoch: int = 0
    trouble: str = ""


class Mandate(Protocol):
    """None of these waits."""

    def check(self) -> None:
        """Errors: NotLeader, which says who leads."""

    def standing(self) -> Standing: ...

    def promise(self, leader: str, epoch: int, seconds: float) -> bool:
        """Another router leads and cannot renew its lease. True: this one will not lead for so long."""
