"""Asks the router to bring a changed manifest to the whole cluster: what the supervisor, the apiserver's
`/admin/reload` and `llmserve reload` do."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.config.changes import Changes, LiveChange, NeedsRestart
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import ask_leader

_SECONDS = 15.0  # the router asks its apiservers twice, and gives them 5 s each time


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The result of a reload. failed: processes that did not confirm it, and why."""

    changes: Changes
    failed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns the result as text for people."""
        lines = [f"live: {one}" for one in self.changes.live]
        lines += [f"left: {one}" for one in self.changes.restart]
        lines += [f"FAILED: {one}" for one in self.failed]
        return lines or ["nothing has changed"]


async def reload_cluster(routers: Sequence[str], text: str, file: str) -> Reloaded:
    """routers: HOST:PORT of each. text: the whole manifest; file: what messages call it. Errors:
    InvalidRequest with path and line when it is wrong, Unavailable when no router leads; nothing is changed
    then."""
    request = router_pb2.ReloadRequest(text=text, file=file)
    return decode_reloaded(await ask_leader(routers, lambda stub: stub.Reload(request, timeout=_SECONDS)))


def encode_reloaded(reloaded: Reloaded) -> router_pb2.ReloadResponse:
    return router_pb2.ReloadResponse(
        live=[
            router_pb2.ManifestChange(path=one.path, before=one.before, after=one.after)
            for one in reloaded.changes.live
        ],
        restart=[
            router_pb2.NeedsRestart(path=one.path, processes=one.processes)
            for one in reloaded.changes.restart
        ],
        failed=reloaded.failed,
    )


def decode_reloaded(message: router_pb2.ReloadResponse) -> Reloaded:
    changes = Changes(
        tuple(LiveChange(one.path, one.before, one.after) for one in message.live),
        tuple(NeedsRestart(one.path, tuple(one.processes)) for one in message.restart),
    )
    return Reloaded(changes, tuple(message.failed))
