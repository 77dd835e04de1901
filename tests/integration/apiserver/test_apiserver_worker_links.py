"""Worker links over real gRPC: above all, that no lease is forgotten."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from llmserve.apiserver.links.worker import WorkerLinks
from llmserve.core.errors import InvalidRequest, WorkerLost
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, EngineRequest, SamplingLimits
from llmserve.metrics.apiserver import ApiserverMetrics


@pytest.fixture
def request_() -> EngineRequest:
    return EngineRequest(
        RequestId("r1"),
        prompt_token_ids=[5, 6, 7],
        limits=SamplingLimits(max_tokens=1),
        sampling_params=msgspec.msgpack.encode({}),
        kv_transfer_params={"do_remote_decode": True},
    )


@pytest_asyncio.fixture
async def links() -> AsyncIterator[WorkerLinks]:
    made = WorkerLinks(ApiserverMetrics(CollectorRegistry()))
    yield made
    await made.aclose()
    await made.aclose()


async def test_a_lease_that_came_and_was_not_taken_is_released(
    links: WorkerLinks, prefill: Any, request_: EngineRequest
) -> None:
    leg = links.open(prefill.info(), request_, 5.0, 5.0)
    await prefill.until(lambda: "r1" in prefill.seen and not prefill.running)
    await leg.has_output()
    leg.close()
    await prefill.until(lambda: prefill.released == ["r1"])


async def test_a_lease_that_comes_after_the_abort_is_released(
    links: WorkerLinks, prefill: Any, request_: EngineRequest
) -> None:
    prefill.pause_at, prefill.obeys_aborts = 0, False
    leg = links.open(prefill.info(), request_, 5.0, 5.0)
    await prefill.until(lambda: bool(prefill.seen))
    leg.close()
    leg.close()
    await prefill.until(lambda: prefill.aborted == ["r1"])
    prefill.go.set()
    await prefill.until(lambda: prefill.released == ["r1"])


async def test_a_lease_that_was_taken_is_the_taker_s(
    links: WorkerLinks, prefill: Any, request_: EngineRequest
) -> None:
    leg = links.open(prefill.info(), request_, 5.0, 5.0)
    outputs: list[EngineOutput] = []

    def take(output: EngineOutput) -> bool:
        outputs.append(output)
        return False

    await leg.pass_to(take)
    leg.close()
    assert outputs[-1].kv_transfer_params == {
        "do_remote_prefill": True,
        "worker_id": "prefill-0",
        "lease_id": "r1",
    }
    assert (prefill.released, prefill.aborted) == ([], [])


async def test_a_name_is_used_once_at_a_time(
    links: WorkerLinks, prefill: Any, request_: EngineRequest
) -> None:
    prefill.pause_at = 0
    leg = links.open(prefill.info(), request_, 5.0, 5.0)
    with pytest.raises(InvalidRequest, match="runs on prefill-0 already"):
        links.open(prefill.info(), request_, 5.0, 5.0)
    leg.close()


async def test_nobody_listens_there(links: WorkerLinks, prefill: Any, request_: EngineRequest) -> None:
    await prefill.crash()
    leg = links.open(prefill.info(), request_, 5.0, 5.0)
    with pytest.raises(WorkerLost, match="lost the worker prefill-0"):
        await leg.has_output()
    leg.close()


async def test_idle_links_to_workers_that_left_are_closed(
    links: WorkerLinks, prefill: Any, request_: EngineRequest
) -> None:
    prefill.pause_at = 0
    leg = links.open(prefill.info(), request_, 5.0, 5.0)
    links.retain([])
    assert len(links) == 1  # busy: it may finish
    leg.close()
    links.retain([])
    assert len(links) == 0


async def test_a_request_that_no_message_holds_leaves_nothing(
    links: WorkerLinks, prefill: Any, request_: EngineRequest
) -> None:
    with pytest.raises(ValueError, match="out of range"):
        links.open(prefill.info(), replace(request_, priority=2**40), 5.0, 5.0)
    links.open(prefill.info(), request_, 5.0, 5.0).close()
