"""Takes a worker out of service, or back, as `llmserve drain` does."""

from pathlib import Path
from typing import Any

from llmserve.apiserver.console.processes import ProcessTable
from llmserve.core.errors import NotFound
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses, ask_leader

_ASK_SECONDS = 5.0
_DRAINED_FOLDER = "drained"  # runner/state.py: DrainedMark


async def drain(routers: RouterAddresses, worker: str, timeout_seconds: float) -> dict[str, Any]:
    """timeout_seconds: for its requests to end; 0: the manifest's. Errors: NotFound; Unavailable."""
    answer = await _order(routers, worker, drain=True, timeout_seconds=timeout_seconds)
    return {
        "worker": worker,
        "running_requests": answer.running_requests,
        "others": answer.others,
        "timeout_seconds": answer.timeout_seconds,
    }


async def take_back(routers: RouterAddresses, worker: str, table: ProcessTable | None) -> dict[str, Any]:
    """table: what the supervisor says, which starts a worker again that has stopped. Errors: as drain."""
    if table is not None and table.temp_dir and _unmark(table, worker):
        return {"worker": worker, "started_again": True}
    await _order(routers, worker, drain=False)
    return {"worker": worker, "started_again": False}


def _unmark(table: ProcessTable, worker: str) -> bool:
    """Returns whether the worker had left. Errors: NotFound for a name of no process."""
    if worker not in {role["name"] for role in table.roles}:
        raise NotFound(f"there is no worker {worker}")
    try:
        (Path(table.temp_dir) / _DRAINED_FOLDER / worker).unlink()
    except FileNotFoundError:
        return False
    return True


async def _order(
    routers: RouterAddresses, worker: str, *, drain: bool, timeout_seconds: float = 0.0
) -> router_pb2.DrainResponse:
    order = router_pb2.DrainOrder(drain=drain, timeout_seconds=timeout_seconds)
    request = router_pb2.DrainRequest(worker_id=worker, order=order)
    answer: router_pb2.DrainResponse = await ask_leader(
        routers, lambda stub: stub.Drain(request, timeout=_ASK_SECONDS)
    )
    return answer
