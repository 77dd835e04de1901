"""Questions to a running cluster, each with a deadline of 2 s: health, load, blocks and leases."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc, router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc

HEALTHY = "healthy"
_DEADLINE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What the cluster said. healths: by name of the process, HEALTHY or why not. A service that did not
    answer has its default here and a sentence in `problems`."""

    healths: Mapping[str, str] = field(default_factory=dict)
    router: router_pb2.GetClusterStatusResponse = field(default_factory=router_pb2.GetClusterStatusResponse)
    kvmanager: kvmanager_pb2.GetKvStatusResponse = field(default_factory=kvmanager_pb2.GetKvStatusResponse)
    problems: tuple[str, ...] = ()


async def ask(roles: list[dict[str, Any]]) -> Answers:
    """roles: those of cluster.json (ClusterState.roles)."""
    problems: list[str] = []
    router, kvmanager, healths = await asyncio.gather(
        _router(address_of(roles, "router"), problems),
        _kvmanager(address_of(roles, "kvmanager"), problems),
        asyncio.gather(*(_health(role) for role in roles)),
    )
    named = {str(role["name"]): health for role, health in zip(roles, healths, strict=True)}
    return Answers(named, router, kvmanager, tuple(problems))


def address_of(roles: list[dict[str, Any]], service: str) -> str | None:
    """Every worker was told where the router and the kvmanager are."""
    return next((str(role[service]) for role in roles if role[service]), None)


async def _router(address: str | None, problems: list[str]) -> router_pb2.GetClusterStatusResponse:
    request, empty = router_pb2.GetClusterStatusRequest(), router_pb2.GetClusterStatusResponse()
    if address is None:
        return empty
    async with open_channel(address) as channel:
        try:
            stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
            status: router_pb2.GetClusterStatusResponse = await stub.GetClusterStatus(
                request, timeout=_DEADLINE_SECONDS
            )
            return status
        except grpc.aio.AioRpcError as error:
            problems.append(f"the router does not answer: {from_grpc(error).message}")
            return empty


async def _kvmanager(address: str | None, problems: list[str]) -> kvmanager_pb2.GetKvStatusResponse:
    request, empty = kvmanager_pb2.GetKvStatusRequest(), kvmanager_pb2.GetKvStatusResponse()
    if address is None:
        return empty
    async with open_channel(address) as channel:
        try:
            stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]  # generated
            status: kvmanager_pb2.GetKvStatusResponse = await stub.GetKvStatus(
                request, timeout=_DEADLINE_SECONDS
            )
            return status
        except grpc.aio.AioRpcError as error:
            problems.append(f"the kvmanager does not answer: {from_grpc(error).message}")
            return empty


async def _health(role: Mapping[str, Any]) -> str:
    if role["http"]:
        return await asyncio.to_thread(_http_health, role["http"])
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


def _http_health(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=_DEADLINE_SECONDS):
            return HEALTHY
    except urllib.error.HTTPError as error:
        text = error.read(500).decode(errors="replace").strip()
        return f"not serving ({text})" if text else "not serving"
    except OSError as error:
        return f"no answer ({getattr(error, 'reason', error)})"
