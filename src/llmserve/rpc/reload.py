"""Asks the router to bring a changed manifest to the whole cluster: what the supervisor, the apiserver's
`/admin/reload` and `llmserve reload` do."""

from dataclasses import dataclass

import grpc.aio

from llmserve.config.changes import Change, Changes, NeedsRestart
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc

_SECONDS = 15.0  # the router asks its apiservers twice, and gives them 5 s each time


@dataclass(frozen=True, slots=True)
class Reloaded:
    """failed: who did not confirm that it obeys now, and why."""

    changes: Changes
    failed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"live: {one}" for one in self.changes.live]
        lines += [f"left: {one}" for one in self.changes.restart]
        lines += [f"FAILED: {one}" for one in self.failed]
        return lines or ["nothing has changed"]


async def reload_cluster(router: str, text: str, file: str) -> Reloaded:
    """router: HOST:PORT. text: the whole manifest; file: what messages call it. Errors: InvalidRequest with
    path and line when it is wrong, Unavailable when the router is away; nothing is changed then."""
    request = router_pb2.ReloadRequest(text=text, file=file)
    async with open_channel(router) as channel:
        stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            return decode_reloaded(await stub.Reload(request, timeout=_SECONDS))
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error


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
        tuple(Change(one.path, one.before, one.after) for one in message.live),
        tuple(NeedsRestart(one.path, tuple(one.processes)) for one in message.restart),
    )
    return Reloaded(changes, tuple(message.failed))
