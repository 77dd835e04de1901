"""One run: probe the endpoint, warm it up, send the load."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from llmserve.loadgen.drive import Drive
from llmserve.loadgen.endpoint import Endpoint, EndpointTarget, Probed, probe
from llmserve.loadgen.load import Load
from llmserve.loadgen.prompts import TALKS, PromptForm, Talk, Texts
from llmserve.loadgen.record import LoadRecord
from llmserve.loadgen.report import About

Watch = Callable[[Drive], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Ways:
    """form: form of the prompts; None takes the first that the endpoint accepts. token_ids: range from which
    prompts are made, without its end. warming: conversations before the load, which are not counted."""

    form: PromptForm | None = None
    token_ids: tuple[int, int] = (1000, 30_000)
    warming: int = 4


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """is_cut: the run was cancelled before its end."""

    about: About
    records: Sequence[LoadRecord]
    is_cut: bool


async def run_load(load: Load, target: EndpointTarget, ways: Ways, watch: Watch) -> LoadOutcome:
    """Probes, warms up and sends the load. watch: a context around the load itself. A cancellation (Ctrl-C)
    ends the load; the outcome holds the requests that have ended. Errors: LLMServeError when the endpoint
    does not answer the probe."""
    async with Endpoint(target) as endpoint:
        tenant = load.mix.tenants[0].name
        probed = await probe(endpoint, tenant, ways.form, keeps_talking=load.keeps_talking)
        new_talk = _talks(load, ways, probed)
        await Drive(endpoint, new_talk).closed_loop(load.warming(ways.warming), ways.warming)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        drive = Drive(endpoint, new_talk, load.think_seconds)
        async with watch(drive):
            is_cut = await _sent(load, drive)
    notes = (*probed.notes, *(["the run was stopped early"] if is_cut else []))
    about = About(target.url, target.model, load.describe(), load.seed, str(probed.form), started, notes)
    return LoadOutcome(about, drive.records, is_cut)


def _talks(load: Load, ways: Ways, probed: Probed) -> Callable[[], Talk]:
    texts = Texts(load.seed, ways.token_ids, probed.scale)
    make = TALKS[probed.form]
    return lambda: make(texts)


async def _sent(load: Load, drive: Drive) -> bool:
    """Sends the load; returns whether it was cancelled."""
    try:
        if load.is_open:
            await drive.open_loop(load.scheduled())
        else:
            await drive.closed_loop(load.users(), load.count, load.seconds)
    except asyncio.CancelledError:
        return True
    return False
