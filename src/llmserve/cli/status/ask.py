"""Questions to a running cluster, each with a deadline of 2 s: health, load, blocks and leases."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.cli.cluster import kvmanagers_of, routers_of
from llmserve.overview.kv import summed
from llmserve.overview.snapshot import HEALTHY, Answers
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc, router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc
from llmserve.runner.process.liveness import any_certificate

_DEADLINE_SECONDS = 2.0
_TOKEN_SECONDS = 15.0  # a busy cluster lets it wait
_REASON_BYTES = 500

_T = TypeVar("_T")


async def ask(roles: list[dict[str, Any]], credentials: Credentials) -> Answers:
    """roles: those of cluster.json (ClusterState.roles)."""
    problems: list[str] = []
    addresses = routers_of(roles)
    routers, kvmanagers, healths = await asyncio.gather(
        _ask_each(addresses, credentials, CallerRole.ROUTER, _router_status, problems),
        _ask_each(kvmanagers_of(roles), credentials, CallerRole.KVMANAGER, _kv_status, problems),
        asyncio.gather(*(_health(role, credentials) for role in roles)),
    )
    named = {str(role["name"]): health for role, health in zip(roles, healths, strict=True)}
    leader = next((name for name, status in routers.items() if status.leads), "")
    problems += _leader_problems(routers, leader)
    status = routers.get(leader, router_pb2.GetClusterStatusResponse())
    leading = {leader: addresses[leader]} if leader else {}
    adapters = (await _ask_each(leading, credentials, CallerRole.ROUTER, _adapters, problems)).get(leader, ())
    address = leading.get(leader, "")
    return Answers(named, status, summed(kvmanagers), tuple(problems), address, adapters)


async def _router_status(channel: grpc.aio.Channel) -> router_pb2.GetClusterStatusResponse:
    stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
    status: router_pb2.GetClusterStatusResponse = await stub.GetClusterStatus(
        router_pb2.GetClusterStatusRequest(), timeout=_DEADLINE_SECONDS
    )
    return status


async def _adapters(channel: grpc.aio.Channel) -> tuple[router_pb2.AdapterStatus, ...]:
    stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
    answer = await stub.ListAdapters(router_pb2.ListAdaptersRequest(), timeout=_DEADLINE_SECONDS)
    return tuple(answer.adapters)


async def _kv_status(channel: grpc.aio.Channel) -> kvmanager_pb2.GetKvStatusResponse:
    stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]  # generated
    status: kvmanager_pb2.GetKvStatusResponse = await stub.GetKvStatus(
        kvmanager_pb2.GetKvStatusRequest(), timeout=_DEADLINE_SECONDS
    )
    return status


async def _ask_each(
    addresses: Mapping[str, str],
    credentials: Credentials,
    callee: CallerRole,
    question: Callable[[grpc.aio.Channel], Awaitable[_T]],
    problems: list[str],
) -> dict[str, _T]:
    """addresses: HOST:PORT by name. Returns the answers by name; who gives none is in `problems`."""
    answers: dict[str, _T] = {}

    async def one(name: str, address: str) -> None:
        async with open_channel(address, credentials, callee) as channel:
            try:
                answers[name] = await question(channel)
            except grpc.aio.AioRpcError as error:
                problems.append(f"{name} does not answer: {from_grpc(error).message}")

    await asyncio.gather(*(one(name, address) for name, address in addresses.items()))
    return {name: answers[name] for name in addresses if name in answers}


def _leader_problems(routers: Mapping[str, router_pb2.GetClusterStatusResponse], leader: str) -> list[str]:
    if leader:
        error = routers[leader].state_trouble
        return [f"the routers' shared state is away: {error}"] if error else []
    errors = {status.state_trouble for status in routers.values() if status.state_trouble}
    return [": ".join(("no router leads", *sorted(errors)))] if routers else []


async def _health(role: Mapping[str, Any], credentials: Credentials) -> str:
    if role["http"]:
        return await asyncio.to_thread(_http_health, _url_of(role))
    if role["listen"]:
        channel = open_channel(role["listen"], credentials, CallerRole.of_process(role["role"]))
        return await _grpc_health(channel)
    return HEALTHY


async def _grpc_health(opened: grpc.aio.Channel) -> str:
    serving = health_pb2.HealthCheckResponse.SERVING
    async with opened as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"no answer ({error.code().name.lower()})"
    return HEALTHY if answer.status == serving else "not serving"


def _url_of(role: Mapping[str, Any]) -> str:
    scheme = "https" if role.get("https") else "http"
    return f"{scheme}://{role.get('direct') or role['http']}"


def _http_health(url: str) -> str:
    status, error, _ = _http(f"{url}/health", _DEADLINE_SECONDS)
    if not status:
        return f"no answer ({error})"
    if status >= 400:
        return f"not serving ({error})" if error else "not serving"
    return HEALTHY


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """The answer of an apiserver to a request for one token. status: of HTTP; 0: no answer came, and `error`
    says why. sent_key: the request had a key, or none is needed."""

    name: str
    status: int
    seconds: float
    error: str = ""
    sent_key: bool = True


def request_one_token(role: Mapping[str, Any], model: str, key: str | None) -> ApiAnswer:
    """Sends an apiserver what a client sends. Blocks for at most 15 s. key: empty when none is needed, None
    when none is known."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{_url_of(role)}/v1/completions", json.dumps(body).encode(), headers)
    began = time.monotonic()
    status, error, phrase = _http(request, _TOKEN_SECONDS)
    return ApiAnswer(str(role["name"]), status, time.monotonic() - began, error or phrase, key is not None)


def _http(request: urllib.request.Request | str, seconds: float) -> tuple[int, str, str]:
    """Returns the status, the beginning of an error's body, and the error's phrase. Status 0: no answer came,
    for the reason that is second."""
    try:
        with urllib.request.urlopen(request, timeout=seconds, context=any_certificate()) as answer:
            return answer.status, "", ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_REASON_BYTES).decode(errors="replace").strip(), str(error.reason)
    except OSError as error:
        return 0, str(getattr(error, "reason", error)), ""
