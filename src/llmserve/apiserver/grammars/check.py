"""Refuses structured output that no engine could compile, before one is asked."""

import asyncio
import hashlib
import json
import re
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from dataclasses import fields
from typing import Any

from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from llmserve.apiserver.grammars.forks import CompileResult, Task
from llmserve.apiserver.grammars.process import SharedCompiler
from llmserve.core.errors import InvalidRequest, Overloaded, Unavailable
from llmserve.core.tasks import TaskOwner

_SETTING = "security.limits.grammar_kib"
_KNOWN = 2048
_MAX_WAITING = 16  # of a tenant
_WAIT_SECONDS = 200.0  # the start of the process included
_PLACE_IN_COMPILER = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")  # a time, a file and a line of its source
_FIELDS = tuple(field.name for field in fields(StructuredOutputsParams) if field.init)


class GrammarCheck:
    """The grammars of one model. A grammar is compiled once, and what came of it is remembered. The first one
    waits for the process that compiles unless `start` was called before. A tenant has one grammar compiled at
    a time, so that it cannot keep the others waiting. Life: [start] -> check … -> aclose (idempotent)."""

    def __init__(self, config: Any, compiler: SharedCompiler) -> None:
        """config: vLLM's. compiler: that of all models, which is not closed here."""
        self._config, self._compiler = config, compiler
        self._owner = TaskOwner("grammars")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: Counter[str] = Counter()  # by tenant
        self._asked: dict[bytes, asyncio.Task[CompileResult | Unavailable]] = {}
        self._known: OrderedDict[bytes, CompileResult] = OrderedDict()

    async def start(self) -> None:
        """Prepares for the first grammar. A failure is left to that one, which tries again."""
        with suppress(Unavailable):
            await (await self._compiler.running()).learn(self._config)

    async def check(self, params: SamplingParams, tenant: str) -> None:
        """Errors: InvalidRequest with the compiler's reason; Overloaded; Unavailable without a compiler."""
        if params.structured_outputs is None:
            return
        task = _task(params)
        text = json.dumps(task, sort_keys=True).encode()
        if len(text) > self._compiler.limits.grammar_kib << 10:
            raise _refused(f"it is larger than {self._compiler.limits.grammar_kib} KiB ({_SETTING})")
        answer = await self._answer(hashlib.sha256(text).digest(), task, tenant)
        if isinstance(answer, Unavailable):
            raise answer
        if answer.problem:
            raise _refused(answer.problem)

    async def _answer(self, key: bytes, task: Task, tenant: str) -> CompileResult | Unavailable:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if key not in self._asked:
            if self._waiting[tenant] >= _MAX_WAITING:
                raise _busy()
            self._waiting[tenant] += 1
            self._asked[key] = asked = self._owner.spawn("compile", self._ask(key, task, tenant))
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                return await asyncio.shield(self._asked[key])  # others may wait for the same
        except TimeoutError:
            raise _busy() from None

    async def _ask(self, key: bytes, task: Task, tenant: str) -> CompileResult | Unavailable:
        try:
            async with self._turns[tenant], self._compiler.slots:
                answer = await (await self._compiler.running()).ask(self._config, task)
        except Unavailable as error:
            return error
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:  # an issuer of tokens may have any number of tenants
                del self._waiting[tenant], self._turns[tenant]
        if not answer.limited:
            self._known[key] = answer
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return answer

    async def aclose(self) -> None:
        await self._owner.aclose()
        self._compiler.forget(self._config)


def _task(params: SamplingParams) -> Task:
    given = {name: getattr(params.structured_outputs, name) for name in _FIELDS}
    constraint = {name: value for name, value in given.items() if value is not None}
    return {"constraint": constraint, "stop_token_ids": sorted(params.stop_token_ids or ())}


def _busy() -> Overloaded:
    return Overloaded("too many structured outputs wait to be compiled", retry_after_seconds=5.0)


def _refused(problem: str) -> InvalidRequest:
    plain = _PLACE_IN_COMPILER.sub("", problem)
    return InvalidRequest(f"the structured output cannot be compiled: {plain}", field="structured_outputs")
