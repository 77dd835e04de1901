"""Questions to a running cluster, each with a deadline of 2 s: health, load, blocks and leases."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.cli.cluster import kvmanagers_of, routers_of
from llmserve.cli.kv.managers import summed
from llmserve.doctor.cluster import ApiFacts
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc, router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc

HEALTHY = "healthy"
_DEADLINE_SECONDS = 2.0
_TOKEN_SECONDS = 15.0  # a busy cluster lets it wait


@dataclass(frozen=True, slots=True)
class Answers:
    """What the cluster said. healths: by name of the process, HEALTHY or why not. router: of the one that
    leads. leading: its address, empty when there is none. kvmanager: of all that answered, as one. A
    service that did not answer has its default here and a sentence in `problems`."""

    healths: Mapping[str, str] = field(default_factory=dict)
    router: router_pb2.GetClusterStatusResponse = field(default_factory=router_pb2.GetClusterStatusResponse)
    kvmanager: kvmanager_pb2.GetKvStatusResponse = field(default_factory=kvmanager_pb2.GetKvStatusResponse)
    problems: tuple[str, ...] = ()
    leading: str = ""


async def ask(roles: list[dict[str, Any]]) -> Answers:
    """roles: those of cluster.json (ClusterState.roles)."""
    problems: list[str] = []
    (leading, router), kvmanagers, healths = await asyncio.gather(
        _leader(routers_of(roles), problems),
        _kvmanagers(kvmanagers_of(roles), problems),
        asyncio.gather(*(_health(role) for role in roles)),
    )
    named = {str(role["name"]): health for role, health in zip(roles, healths, strict=True)}
    return Answers(named, router, kvmanagers, tuple(problems), leading)


async def _leader(
    addresses: Mapping[str, str], problems: list[str]
) -> tuple[str, router_pb2.GetClusterStatusResponse]:
    """Its address and its answer; empty when none leads."""
    answers = await asyncio.gather(*(_router(name, at, problems) for name, at in addresses.items()))
    for address, answer in zip(addresses.values(), answers, strict=True):
        if answer is not None and answer.leads:
            if answer.state_trouble:
                problems.append(f"the routers' shared state is away: {answer.state_trouble}")
            return address, answer
    if any(answer is not None for answer in answers):
        troubles = {answer.state_trouble for answer in answers if answer and answer.state_trouble}
        problems.append(": ".join(("no router leads", *sorted(troubles))))
    return "", router_pb2.GetClusterStatusResponse()


async def _router(name: str, address: str, problems: list[str]) -> router_pb2.GetClusterStatusResponse | None:
    request = router_pb2.GetClusterStatusRequest()
    async with open_channel(address) as channel:
        try:
            stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
            status: router_pb2.GetClusterStatusResponse = await stub.GetClusterStatus(
                request, timeout=_DEADLINE_SECONDS
            )
            return status
        except grpc.aio.AioRpcError as error:
            problems.append(f"{name} does not answer: {from_grpc(error).message}")
            return None


async def _kvmanagers(addresses: Mapping[str, str], problems: list[str]) -> kvmanager_pb2.GetKvStatusResponse:
    """Those that answer, as one."""
    answers = await asyncio.gather(*(_kvmanager(name, at, problems) for name, at in addresses.items()))
    return summed({name: one for name, one in zip(addresses, answers, strict=True) if one is not None})


async def _kvmanager(
    name: str, address: str, problems: list[str]
) -> kvmanager_pb2.GetKvStatusResponse | None:
    request = kvmanager_pb2.GetKvStatusRequest()
    async with open_channel(address) as channel:
        try:
            stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]  # generated
            status: kvmanager_pb2.GetKvStatusResponse = await stub.GetKvStatus(
                request, timeout=_DEADLINE_SECONDS
            )
            return status
        except grpc.aio.AioRpcError as error:
            problems.append(f"{name} does not answer: {from_grpc(error).message}")
            return None


async def _health(role: Mapping[str, Any]) -> str:
    if role["http"]:
        return await asyncio.to_thread(_http_health, role.get("direct") or role["http"])
    if role["listen"]:
        return await _grpc_health(role["listen"])
    return HEALTHY


async def _grpc_health(address: str) -> str:
    serving = health_pb2.HealthCheckResponse.SERVING
    async with open_channel(address) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"no answer ({error.code().name.lower()})"
    return HEALTHY if answer.status == serving else "not serving"


def request_one_token(role: Mapping[str, Any], model: str, key: str | None) -> ApiFacts:
    """Sends an apiserver what a client sends. Blocks for at most 15 s. key: empty when none is needed, None
    when none is known."""
    name, address = str(role["name"]), role.get("direct") or role["http"]
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"http://{address}/v1/completions", json.dumps(body).encode(), headers)
    began = time.monotonic()
    status, trouble = 0, ""
    try:
        with urllib.request.urlopen(request, timeout=_TOKEN_SECONDS) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status, trouble = error.code, error.read(500).decode(errors="replace").strip() or error.reason
    except OSError as error:
        trouble = str(getattr(error, "reason", error))
    return ApiFacts(name, status, time.monotonic() - began, trouble, key is not None)


def _http_health(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=_DEADLINE_SECONDS):
            return HEALTHY
    except urllib.error.HTTPError as error:
        text = error.read(500).decode(errors="replace").strip()
        return f"not serving ({text})" if text else "not serving"
    except OSError as error:
        return f"no answer ({getattr(error, 'reason', error)})"
