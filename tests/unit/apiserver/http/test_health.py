import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from llmserve.apiserver.http import health
from llmserve.apiserver.http.health import Readiness, api_failure
from llmserve.rpc.gen.llmserve.v1.common_pb2 import (
    WORKER_ROLE_AGGREGATED,
    WORKER_ROLE_DECODE,
    WORKER_ROLE_PREFILL,
    WorkerInfo,
)


@dataclass
class Cluster:
    workers: list[WorkerInfo]
    connected: bool = True


PREFILL, DECODE, BOTH = (
    WorkerInfo(role=role, model="m")
    for role in (WORKER_ROLE_PREFILL, WORKER_ROLE_DECODE, WORKER_ROLE_AGGREGATED)
)


@pytest.mark.parametrize(
    ("workers", "needs_pairs", "missing"),
    [
        ([PREFILL, DECODE], True, ""),
        ([BOTH], True, ""),
        ([BOTH], False, ""),
        ([DECODE], False, ""),
        ([PREFILL], False, ""),
        ([DECODE], True, "no prefill worker is available"),
        ([PREFILL], True, "no decode worker is available"),
        ([], True, "no prefill and no decode worker is available"),
        ([], False, "no worker is available"),
    ],
)
def test_workers_that_can_serve_must_be_there(
    workers: list[WorkerInfo], needs_pairs: bool, missing: str
) -> None:
    assert Readiness(Cluster(workers), "m", needs_pairs=needs_pairs).missing() == missing


def test_workers_of_another_model_do_not_count() -> None:
    others = Cluster([WorkerInfo(role=WORKER_ROLE_AGGREGATED, model="other"), DECODE])
    assert Readiness(others, "m", needs_pairs=True).missing() == "no prefill worker is available"
    assert Readiness(others, "n", needs_pairs=False).missing() == "no worker is available"


def test_without_the_router_nothing_is_known() -> None:
    cluster = Cluster([PREFILL, DECODE], connected=False)
    assert Readiness(cluster, "m", needs_pairs=False).missing() == "no session with the router"


def app_that_answers(status: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["method"], scope["path"]) == ("GET", "/v1/models")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


async def test_the_api_answers() -> None:
    assert await api_failure(app_that_answers(200)) == ""


async def test_the_api_refuses_everybody() -> None:
    assert "401" in await api_failure(app_that_answers(401))


async def test_the_api_fails() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    assert "boom" in await api_failure(broken)


async def test_the_api_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "_ANSWER_SECONDS", 0.01)
    assert "no answer" in await api_failure(hanging)
