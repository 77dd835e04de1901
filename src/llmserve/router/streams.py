"""The open sessions of apiservers, and the way to answer each."""

from dataclasses import dataclass

from llmserve.core.ids import ApiserverId
from llmserve.router.outbox import Outbox
from llmserve.router.polls import Send
from llmserve.router.session import Session
from llmserve.rpc.gen.llmserve.v1.router_pb2 import RouterSessionResponse


@dataclass(eq=False, slots=True)
class Stream:
    session: Session
    outbox: Outbox


class Streams:
    """At most one of each apiserver."""

    def __init__(self) -> None:
        self._streams: dict[ApiserverId, Stream] = {}

    def add(self, stream: Stream) -> Stream | None:
        """Returns the older one of its apiserver, whose place it takes."""
        older = self._streams.get(stream.session.apiserver_id)
        self._streams[stream.session.apiserver_id] = stream
        return older

    def drop(self, stream: Stream) -> bool:
        """False: it is not open any more, or has been replaced."""
        if self._streams.get(stream.session.apiserver_id) is not stream:
            return False
        del self._streams[stream.session.apiserver_id]
        return True

    def send(self, session: Session, message: RouterSessionResponse) -> None:
        """Nothing for a session that has ended."""
        stream = self._streams.get(session.apiserver_id)
        if stream and stream.session is session:
            stream.outbox.send(message)

    def send_state(self, state: RouterSessionResponse) -> None:
        """To all."""
        for stream in self._streams.values():
            stream.outbox.send_state(state)

    def senders(self) -> dict[ApiserverId, Send]:
        return {name: stream.outbox.send for name, stream in self._streams.items()}

    def close(self) -> None:
        """Each ends once what waits in it is sent."""
        for stream in self._streams.values():
            stream.outbox.close()
