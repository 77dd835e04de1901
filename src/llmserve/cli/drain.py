"""`llmserve drain`: takes a worker out of service, or back."""

import argparse
import asyncio
import time
from pathlib import Path

from llmserve.cli.cluster import FoundCluster, add_cluster, find_cluster, operator
from llmserve.cli.command import EXIT_OK, Command
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses, ask_leader
from llmserve.runner.board import ProcessState
from llmserve.runner.state import DrainedMark, read_state

_ASK_SECONDS = 5.0
_POLL_SECONDS = 0.2
_STOP_SECONDS = 40.0  # of the worker itself, when it is drained

_ABOUT = """\
Takes a worker out of service: it gets no new requests, those that run there end or, when the time is over,
go on at another worker, and then it stops and stays away. `llmserve drain --undo WORKER` takes it back: at
once while it is still draining, else it is started again. Returns when the worker has stopped.

With --router, a cluster that was not started here: on Kubernetes the worker ends with 0, and what it is
started by decides whether it comes back.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    parser.add_argument("worker", metavar="WORKER", help="its name, such as decode-0")
    parser.add_argument("--router", metavar="HOST:PORT", help="ask this router, and do not wait")
    parser.add_argument("--undo", action="store_true", help="take it back")
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    parser.add_argument(
        "--timeout",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="for its requests to end (default: scheduling.drain_timeout_seconds)",
    )


def _run(options: argparse.Namespace) -> int:
    if options.router:
        _say_what_follows(
            options, asyncio.run(_order(RouterAddresses((options.router,), operator()), options))
        )
        return EXIT_OK
    cluster = find_cluster(options)
    _role(cluster, options.worker)
    if options.undo:
        _take_back(cluster, options)
    else:
        _drain(cluster, options)
    return EXIT_OK


def _drain(cluster: FoundCluster, options: argparse.Namespace) -> None:
    answer = asyncio.run(_order(cluster.routers, options))
    _say_what_follows(options, answer)
    if not options.no_wait:
        _wait(cluster, options.worker, answer.timeout_seconds + _STOP_SECONDS)
        print(f"{options.worker} has stopped. `llmserve drain --undo {options.worker}` starts it again.")


def _take_back(cluster: FoundCluster, options: argparse.Namespace) -> None:
    """Errors: NotFound when the worker neither drains nor is drained."""
    if DrainedMark(Path(cluster.state.temp_dir), options.worker).clear():
        print(f"{options.worker} is started again.")
        return
    asyncio.run(_order(cluster.routers, options))
    print(f"{options.worker} stays in service.")


def _say_what_follows(options: argparse.Namespace, answer: router_pb2.DrainResponse) -> None:
    if options.undo:
        print(f"{options.worker} stays in service.")
        return
    print(
        f"Draining {options.worker}: {answer.running_requests} requests run there, "
        f"for at most {answer.timeout_seconds:g} s",
        flush=True,
    )
    if not answer.others:
        print(
            "Warning: no other worker of its role is available. Those of the other role serve alone "
            "meanwhile. Where there is none, requests wait for one, for "
            "scheduling.queue_timeout_seconds at most.",
            flush=True,
        )


async def _order(routers: RouterAddresses, options: argparse.Namespace) -> router_pb2.DrainResponse:
    """Errors: NotFound for a worker that the router does not know; LLMServeError."""
    order = router_pb2.DrainOrder(drain=not options.undo, timeout_seconds=max(0.0, options.timeout))
    request = router_pb2.DrainRequest(worker_id=options.worker, order=order)
    answer: router_pb2.DrainResponse = await ask_leader(
        routers, lambda stub: stub.Drain(request, timeout=_ASK_SECONDS)
    )
    return answer


def _role(cluster: FoundCluster, worker: str) -> dict[str, object]:
    """Errors: NotFound, InvalidRequest."""
    roles = {str(role["name"]): role for role in cluster.state.roles}
    workers = [name for name, role in roles.items() if role["role"] in ("prefill", "decode", "aggregated")]
    if worker not in roles:
        raise NotFound(f"no worker {worker} in {cluster.state.name}: there are {', '.join(workers)}")
    if worker not in workers:
        raise InvalidRequest(f"{worker} is no worker: only {', '.join(workers)} can be drained")
    return roles[worker]


def _wait(cluster: FoundCluster, worker: str, seconds: float) -> None:
    """Errors: LLMServeError when the worker does not stop in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = read_state(cluster.run_dir)
        if state is None or not state.is_running:
            return
        if _role(FoundCluster(cluster.run_dir, state), worker)["stand"] == ProcessState.DRAINED:
            return
        time.sleep(_POLL_SECONDS)
    raise LLMServeError(f"{worker} has not stopped after {seconds:.0f} s: see {cluster.state.log_dir}")


COMMAND = Command("drain", "take a worker out of service, or back", _ABOUT, _configure, _run)
