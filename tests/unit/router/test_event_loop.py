"""In which order the effects of a decision are delivered."""

from types import SimpleNamespace
from typing import Any

from llmserve.core.adapters import NamedAdapter
from llmserve.core.ids import AdapterDigest, ApiserverId
from llmserve.router.event_loop import EventLoop
from llmserve.router.sessions import RouterSession
from llmserve.router.streams import SessionStream
from llmserve.rpc.adapters import decode_names

SQL = NamedAdapter("sql", AdapterDigest("1" * 64), "m")


def test_all_sessions_are_sent_new_names_before_their_load_is_answered() -> None:
    delivered: list[Any] = []
    names: tuple[NamedAdapter, ...] = ()
    lifecycle = SimpleNamespace(table=SimpleNamespace(leftovers=set()))
    book = SimpleNamespace(names=lambda: names, lifecycle=lifecycle)
    controller = SimpleNamespace(adapters=book, cluster_version=1, membership=[], next_wake=lambda: None)
    leader_check = SimpleNamespace(status=lambda: SimpleNamespace(epoch=1))
    watch = SimpleNamespace(look=lambda: delivered.append("loads are answered"))
    event_loop = EventLoop(controller, None, None, None, leader_check, None, watch)  # type: ignore[arg-type]
    for name in "ab":
        outbox = SimpleNamespace(send_state=lambda sent: delivered.append(decode_names(sent.state.adapters)))
        event_loop.streams.add(SessionStream(RouterSession(ApiserverId(name)), outbox))  # type: ignore[arg-type]
    names = (SQL,)
    event_loop.apply([])
    assert delivered == [(SQL,), (SQL,), "loads are answered"]
