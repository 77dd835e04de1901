"""What is compiled, for whom, and how often. The process for it is a fake."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from llmserve.apiserver.grammars.check import GrammarCheck
from llmserve.apiserver.grammars.forks import CompileResult, Task
from llmserve.apiserver.grammars.process import SharedCompiler
from llmserve.config.schema.limits import SecurityLimits
from llmserve.core.errors import InvalidRequest, Overloaded, Unavailable


class FakeProcess:
    """Says of a regex what `answers` has for it. Those in `held` wait for their event."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.asked_of: list[Any] = []
        self.models: list[Any] = []
        self.answers: dict[str, CompileResult] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.starts = 0
        self.running = self.ended = False
        self.refuses_to_start = self.hangs_at_start = False
        self.closes = 0

    async def start(self) -> None:
        if self.running:
            return
        if self.refuses_to_start:
            self.ended = True
            raise Unavailable("no compiler")
        self.starts += 1
        if self.hangs_at_start:
            await asyncio.Event().wait()
        self.running = True

    async def learn(self, config: Any) -> None:
        self.models.append(config)

    def forget(self, config: Any) -> None:
        self.models.remove(config)

    async def ask(self, config: Any, task: Task) -> CompileResult:
        self.asked_of.append(config)
        regex = task["constraint"]["regex"]
        self.asked.append(regex)
        if regex in self.held:
            await self.held[regex].wait()
        return self.answers.get(regex, CompileResult())

    async def aclose(self) -> None:
        self.running, self.ended = False, True
        self.closes += 1


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess()


@pytest_asyncio.fixture
async def compiler(process: FakeProcess) -> AsyncIterator[SharedCompiler]:
    def made(owner: Any, cpu_seconds: int, server: Any) -> Any:
        process.running = process.ended = False
        return process

    compiler = SharedCompiler(SecurityLimits(grammar_kib=64), make=made)
    yield compiler
    await compiler.aclose()


@pytest_asyncio.fixture
async def check(compiler: SharedCompiler, process: FakeProcess) -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck("config", compiler)
    process.models.append("config")
    yield check
    await check.aclose()


def wanted(regex: str) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(regex=regex))


async def test_without_a_grammar_nothing_is_started(check: GrammarCheck, process: FakeProcess) -> None:
    await check.check(SamplingParams(), "a")
    assert process.starts == 0


async def test_the_process_can_be_started_ahead(check: GrammarCheck, process: FakeProcess) -> None:
    await check.start()
    assert process.running
    await check.check(wanted("good"), "a")
    assert process.starts == 1


async def test_a_start_that_is_cancelled_leaves_no_process(
    check: GrammarCheck, compiler: SharedCompiler, process: FakeProcess
) -> None:
    process.hangs_at_start = True
    starting = asyncio.create_task(check.start())
    while not process.starts:  # noqa: ASYNC110 - a task of its own starts it
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await compiler.aclose()
    assert process.closes == 1


async def test_a_start_ahead_that_fails_is_tried_again(check: GrammarCheck, process: FakeProcess) -> None:
    process.refuses_to_start = True
    await check.start()
    process.refuses_to_start = False
    await check.check(wanted("good"), "a")
    assert process.starts == 1


async def test_a_grammar_is_compiled_once_for_all(check: GrammarCheck, process: FakeProcess) -> None:
    process.answers["bad"] = CompileResult("a reason")
    for tenant in ("a", "b"):
        await check.check(wanted("good"), tenant)
        with pytest.raises(InvalidRequest, match="a reason"):
            await check.check(wanted("bad"), tenant)
    assert process.asked == ["good", "bad"]
    assert process.starts == 1


async def test_where_the_compiler_s_source_refused_it_is_not_said(
    check: GrammarCheck, process: FakeProcess
) -> None:
    process.answers["bad"] = CompileResult("No grammar: [15:11:10] /src/converter.cc:4944: Unsupported type")
    with pytest.raises(InvalidRequest, match="cannot be compiled: No grammar: Unsupported type"):
        await check.check(wanted("bad"), "a")


async def test_models_share_the_process_and_nothing_else(
    check: GrammarCheck, compiler: SharedCompiler, process: FakeProcess
) -> None:
    other = GrammarCheck("other config", compiler)
    await other.start()
    await check.check(wanted("good"), "a")
    await other.check(wanted("good"), "a")
    assert (process.starts, process.asked_of) == (1, ["config", "other config"])
    await other.aclose()
    assert process.models == ["config"]
    assert process.closes == 0


async def test_what_took_too_much_is_tried_again(check: GrammarCheck, process: FakeProcess) -> None:
    process.answers["big"] = CompileResult("too much", limited=True)
    with pytest.raises(InvalidRequest, match="too much"):
        await check.check(wanted("big"), "a")
    process.answers.clear()
    await check.check(wanted("big"), "a")


async def test_too_large_a_grammar_is_not_compiled(check: GrammarCheck, process: FakeProcess) -> None:
    with pytest.raises(InvalidRequest, match="larger"):
        await check.check(wanted("a" * (64 << 10)), "a")
    assert not process.asked


async def test_a_tenant_keeps_only_itself_waiting(check: GrammarCheck, process: FakeProcess) -> None:
    process.held = {"1": asyncio.Event(), "2": asyncio.Event()}
    own = [asyncio.ensure_future(check.check(wanted(one), "a")) for one in ("1", "2")]
    await asyncio.sleep(0)
    await check.check(wanted("3"), "b")
    assert process.asked == ["1", "3"]
    for event in process.held.values():
        event.set()
    await asyncio.gather(*own)


async def test_a_tenant_that_sends_too_many_is_refused(check: GrammarCheck, process: FakeProcess) -> None:
    process.held = {"0": asyncio.Event()}
    own = [asyncio.ensure_future(check.check(wanted(str(number)), "a")) for number in range(18)]
    await asyncio.wait(own, timeout=0.1)
    process.held["0"].set()
    answers = await asyncio.gather(*own, return_exceptions=True)
    assert [answer is None for answer in answers] == [True] * 16 + [False] * 2
    assert all(isinstance(answer, Overloaded) for answer in answers[16:])


async def test_tenants_whose_grammars_are_compiled_are_forgotten(check: GrammarCheck) -> None:
    for tenant in ("a", "b"):
        await check.check(wanted(f"{tenant}1"), tenant)
    assert not check._turns
    assert not check._waiting


async def test_a_client_that_leaves_takes_nothing_from_others(
    check: GrammarCheck, process: FakeProcess
) -> None:
    process.held = {"1": asyncio.Event()}
    first = asyncio.ensure_future(check.check(wanted("1"), "a"))
    second = asyncio.ensure_future(check.check(wanted("1"), "a"))
    await asyncio.sleep(0)
    first.cancel()
    process.held["1"].set()
    await second
    assert process.asked == ["1"]


async def test_a_process_that_ended_is_replaced(check: GrammarCheck, process: FakeProcess) -> None:
    await check.check(wanted("1"), "a")
    process.ended = True
    await check.check(wanted("2"), "a")
    assert process.starts == 2


async def test_without_a_compiler_requests_may_be_sent_again(
    check: GrammarCheck, process: FakeProcess
) -> None:
    process.refuses_to_start = True
    with pytest.raises(Unavailable):
        await check.check(wanted("1"), "a")
    process.refuses_to_start = False
    await check.check(wanted("1"), "a")
