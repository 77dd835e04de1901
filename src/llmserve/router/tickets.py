"""Which request is held by which session. Pure."""

from collections.abc import Iterator

from llmserve.core.ids import ApiserverId, RequestId
from llmserve.router.session import Session, Ticket


class Tickets:
    """One for each request that waits or runs; it is in its session as well, and in no other."""

    def __init__(self) -> None:
        self._sessions: dict[ApiserverId, Session] = {}
        self._tickets: dict[RequestId, Ticket] = {}

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._tickets

    def __getitem__(self, request_id: RequestId) -> Ticket:
        return self._tickets[request_id]

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets.values())

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def apiservers(self) -> int:
        return len(self._sessions)

    def get(self, request_id: RequestId) -> Ticket | None:
        return self._tickets.get(request_id)

    # -- sessions

    def session_of(self, apiserver_id: ApiserverId) -> Session | None:
        return self._sessions.get(apiserver_id)

    def add_session(self, apiserver_id: ApiserverId) -> Session:
        """In place of an older one, whose tickets are to be closed."""
        session = self._sessions[apiserver_id] = Session(apiserver_id)
        return session

    def drop_session(self, session: Session) -> None:
        """Idempotent. Its tickets are to be closed by the caller."""
        if self._sessions.get(session.apiserver_id) is session:
            del self._sessions[session.apiserver_id]

    # -- tickets

    def open(self, request_id: RequestId, ticket: Ticket) -> None:
        self._tickets[request_id] = ticket.session.tickets[request_id] = ticket

    def close(self, request_id: RequestId) -> Ticket:
        ticket = self._tickets.pop(request_id)
        del ticket.session.tickets[request_id]
        return ticket

    def check_integrity(self) -> None:
        """Raises AssertionError when a ticket is in none of the sessions, or in two."""
        in_sessions = [request_id for session in self._sessions.values() for request_id in session.tickets]
        assert sorted(in_sessions) == sorted(self._tickets), self._tickets
