"""In which order the effects of a decision are delivered."""

from types import SimpleNamespace
from typing import Any

from llmserve.config.wanted_models import ServedName
from llmserve.core.adapters import NamedAdapter
from llmserve.core.ids import AdapterDigest, ApiserverId
from llmserve.router.event_loop import EventLoop
from llmserve.router.sessions import RouterSession
from llmserve.router.streams import SessionStream
from llmserve.rpc.adapters import decode_names
from llmserve.rpc.gen.llmserve.v1.router_pb2 import ClusterState
from llmserve.rpc.models import decode_served

MODEL = ServedName("m", "{}", "/models/m")
SQL = NamedAdapter("sql", AdapterDigest("1" * 64), "m")


def test_all_sessions_are_sent_new_names_before_their_load_is_answered() -> None:
    delivered: list[Any] = []
    names: tuple[NamedAdapter, ...] = ()
    lifecycle = SimpleNamespace(table=SimpleNamespace(leftovers=set()))
    book = SimpleNamespace(names=lambda: names, lifecycle=lifecycle)
    served: tuple[ServedName, ...] = ()
    models = SimpleNamespace(served=lambda: served, version=1, manages=True)
    controller = SimpleNamespace(
        adapters=book,
        models=models,
        cluster_version=1,
        membership=[],
        next_wake=lambda: None,
        wants_places=False,
    )
    leader_check = SimpleNamespace(status=lambda: SimpleNamespace(epoch=1))
    watch = SimpleNamespace(look=lambda: delivered.append("loads are answered"))
    event_loop = EventLoop(controller, None, None, None, leader_check, None, watch)  # type: ignore[arg-type]
    for name in "ab":
        outbox = SimpleNamespace(
            send_state=lambda sent: delivered.append(_news(sent.state)),
            want_places=lambda wanted: delivered.append("places are wanted") if wanted else None,
        )
        event_loop.streams.add(SessionStream(RouterSession(ApiserverId(name)), outbox))  # type: ignore[arg-type]
    names = (SQL,)
    event_loop.apply([])
    assert delivered == [(SQL,), (SQL,), "loads are answered"]
    delivered.clear()
    served = (MODEL,)
    event_loop.apply([])
    assert delivered == [(MODEL,), (MODEL,), "loads are answered"]
    delivered.clear()
    controller.wants_places = True
    event_loop.apply([])
    event_loop.apply([])
    assert delivered == ["loads are answered", "places are wanted", "places are wanted", "loads are answered"]


def _news(state: ClusterState) -> tuple[Any, ...]:
    """What a state has of names and models, which are unset when they are as before."""
    names = decode_names(state.adapters) if state.HasField("adapters") else ()
    return (*names, *(decode_served(state.models) if state.HasField("models") else ()))
