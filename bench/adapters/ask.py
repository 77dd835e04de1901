"""Questions to an endpoint with adapters: loads, and single requests whose first token is timed."""

import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llmserve.loadgen.drive import Drive, Ways, run_load
from llmserve.loadgen.endpoint import Endpoint, EndpointTarget
from llmserve.loadgen.load import Load
from llmserve.loadgen.prompts import PromptForm
from llmserve.loadgen.report import LoadReport, Slo, make_report
from llmserve.loadgen.workload import AdapterMix, LoadKind, Mix, Tenant

MODEL = "smollm2"
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 32
ZIPF = 1.0
_EXTRA = {"temperature": 0, "ignore_eos": True}
_TENANT = Tenant("default", None)


@dataclass(frozen=True, slots=True)
class LoadSize:
    """requests: of a whole load. users: of them, at the same time."""

    requests: int
    users: int


@asynccontextmanager
async def _unwatched(drive: Drive) -> AsyncIterator[None]:
    yield


async def loaded(url: str, names: Sequence[str], size: LoadSize) -> LoadReport:
    """Sends prompts that depend on the number of adapters alone, so no two loads of one server share any.
    names: none asks for the model itself. Errors: RuntimeError when a request fails."""
    mix = Mix((LoadKind("short", PROMPT_TOKENS, OUTPUT_TOKENS, 1.0),), (_TENANT,))
    adapters = AdapterMix(names, ZIPF) if names else None
    load = Load(mix, seed=len(names), concurrency=size.users, count=size.requests, adapters=adapters)
    outcome = await run_load(load, _target(url), Ways(PromptForm.TOKENS, warming=size.users), _unwatched)
    report = make_report(outcome.records, outcome.about, Slo(), {})
    if report.failures:
        raise RuntimeError(f"{url} failed: {report.failures[0]}")
    rate, first = report.output_tokens_per_second, 1000 * report.ttft.p50
    print(f"{len(names)} adapters: {rate:.1f} tokens/s, {first:.0f} ms", file=sys.stderr, flush=True)
    return report


class FirstTokens:
    """Times first tokens, one request after another. No two prompts are alike."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._numbers = endpoint, random.Random(15)

    async def of(self, name: str) -> float:
        """Returns the seconds to the first token. name: of an adapter; empty: the model itself. Errors:
        RuntimeError."""
        prompt = {"prompt": [self._numbers.randrange(1000, 30_000) for _ in range(PROMPT_TOKENS)]}
        started = time.perf_counter()
        answer = await self._endpoint.send(
            self._endpoint.body(prompt, 4, name), _TENANT.name, time.perf_counter
        )
        if answer.failure is not None or answer.first_at is None:
            raise RuntimeError(f"{name or MODEL}: {answer.failure}")
        return answer.first_at - started

    async def median_of(self, name: str, repeats: int) -> float:
        return statistics.median([await self.of(name) for _ in range(repeats)])


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[FirstTokens]:
    async with Endpoint(_target(url)) as endpoint:
        yield FirstTokens(endpoint)


def _target(url: str) -> EndpointTarget:
    return EndpointTarget(url, MODEL, {}, extra=_EXTRA)
