"""What one apiserver session holds. Pure: when the session ends, all of it is given back."""

from dataclasses import dataclass, field

from llmserve.core.ids import ApiserverId, RequestId
from llmserve.router.filters import PlacementRequest
from llmserve.router.worker import Seats


class Holding:
    """The seats of a placed request. The prefill seat goes back at the first token, or at the end."""

    __slots__ = ("_decode", "_prefill")

    def __init__(self, prefill: Seats | None, decode: Seats) -> None:
        self._prefill, self._decode = prefill, decode
        for seats in self.seats():
            seats.take()

    def seats(self) -> list[Seats]:
        return [seats for seats in (self._prefill, self._decode) if seats]

    def first_token(self) -> None:
        """Idempotent: a request that is placed again reports it again."""
        if self._prefill:
            self._prefill.give_back()
            self._prefill = None

    def give_back(self) -> None:
        """Exactly once, when the request is over."""
        self.first_token()
        self._decode.give_back()


@dataclass(eq=False, slots=True)
class Session:
    """One open stream. Two sessions are never equal: a returning apiserver gets a new one."""

    apiserver_id: ApiserverId
    tickets: dict[RequestId, "Ticket"] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Ticket:
    """One request between Admit (or Hello) and its end. holding None: it waits in the queue. requests_ahead:
    that waited when it came."""

    session: Session
    placement: PlacementRequest
    holding: Holding | None = None
    requests_ahead: int = 0
