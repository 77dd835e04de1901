"""Sends a load: probes the endpoint, warms it up, sends conversations, at planned times or by a number of
users, and keeps a record of each request."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmserve.loadgen.answer import Answer, LoadRecord, Sending
from llmserve.loadgen.endpoint import Endpoint, EndpointTarget, Probed, probe
from llmserve.loadgen.load import Load, Users
from llmserve.loadgen.prompts import TALKS, PromptForm, Talk, Texts
from llmserve.loadgen.report import About
from llmserve.loadgen.workload import Conversation, Turn


class Stopwatch:
    """Counts the seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start


@dataclass(slots=True)
class Drive:
    """One run; open_loop or closed_loop is called once. think_seconds: pause between an answer and the next
    turn. records: requests that have ended, in that order; failed and output_tokens count these. running:
    requests without an end yet."""

    endpoint: Endpoint
    new_talk: Callable[[], Talk]
    think_seconds: float = 0.0
    watch: Stopwatch = field(default_factory=Stopwatch)
    records: list[LoadRecord] = field(default_factory=list)
    running: int = 0
    failed: int = 0
    output_tokens: int = 0

    async def open_loop(self, conversations: Iterable[Conversation]) -> None:
        """Starts each conversation at its time, whether or not earlier ones have ended. Latency counts from
        that time, also when this process was late. Returns after the last answer."""
        async with asyncio.TaskGroup() as group:
            for conversation in conversations:
                opening = self._opening(conversation)
                await self._sleep_until(conversation.starts_at)
                group.create_task(opening.hold(conversation.starts_at), name=f"load.{conversation.index}")

    async def closed_loop(
        self, users: Iterable[Users], count: int | None = None, seconds: float | None = None
    ) -> None:
        """Runs at most `count` conversations in all; none begins after `seconds`."""
        permits = iter(range(count)) if count is not None else None
        async with asyncio.TaskGroup() as group:
            for one in users:
                for number in range(one.count):
                    group.create_task(self._user(one.conversations, permits, seconds), name=f"user.{number}")

    async def _user(
        self, conversations: Iterator[Conversation], permits: Iterator[int] | None, seconds: float | None
    ) -> None:
        while seconds is None or self.watch.now() < seconds:
            if permits is not None and next(permits, None) is None:
                return
            conversation = next(conversations, None)
            if conversation is None:
                return
            await self._opening(conversation).hold(None)

    def _opening(self, conversation: Conversation) -> "_PreparedTalk":
        talk = self.new_talk()
        first = conversation.turns[0]
        body = self.endpoint.body(talk.ask(first.prompt), first.output_tokens, conversation.adapter)
        return _PreparedTalk(self, conversation, talk, body)

    async def _sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.watch.now()))

    async def send(self, sending: Sending, body: bytes) -> Answer:
        self.running += 1
        sent_at = self.watch.now()
        try:
            answer = await self.endpoint.send(body, sending.tenant, self.watch.now)
        finally:
            self.running -= 1
        self._ended(sending.record(answer, sent_at, self.watch.now()))
        return answer

    def _ended(self, record: LoadRecord) -> None:
        self.records.append(record)
        self.failed += not record.served
        self.output_tokens += record.output_tokens


@dataclass(frozen=True, slots=True)
class _PreparedTalk:
    """A conversation whose first request is prepared, so that sending it takes no more time."""

    drive: Drive
    conversation: Conversation
    talk: Talk
    body: bytes

    async def hold(self, planned_at: float | None) -> None:
        """Holds a conversation to its last turn, or to the first one that fails. planned_at: time of the
        first turn; None means now."""
        body, tokens_so_far = self.body, 0
        for number, turn in enumerate(self.conversation.turns):
            if number:
                await asyncio.sleep(self.drive.think_seconds)
                planned_at = None
                body = self._body(turn)
            tokens_so_far += turn.prompt_tokens
            planned = self.drive.watch.now() if planned_at is None else planned_at
            answer = await self.drive.send(self._sending(number, planned, tokens_so_far), body)
            if answer.failure is not None:
                return
            self.talk.answered(answer)
            tokens_so_far += answer.output_tokens

    def _body(self, turn: Turn) -> bytes:
        said = self.talk.ask(turn.prompt)
        return self.drive.endpoint.body(said, turn.output_tokens, self.conversation.adapter)

    def _sending(self, number: int, planned_at: float, prompt_tokens: int) -> Sending:
        one, output_tokens = self.conversation, self.conversation.turns[number].output_tokens
        return Sending(
            one.index, number, one.kind, one.tenant, planned_at, prompt_tokens, output_tokens, one.adapter
        )


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
