"""The process in which grammars are compiled, as the apiserver sees it."""

import asyncio
import base64
import json
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Any

from llmserve.apiserver.grammars.forks import CompileResult, ForkLimits, Task
from llmserve.config.schema.limits import DEFAULT_LIMITS, SecurityLimits
from llmserve.core.errors import Unavailable
from llmserve.core.tasks import TaskOwner

_START_SECONDS = 180.0  # on a machine that is busy; else it takes six
_STOP_SECONDS = 5.0
_LINE_BYTES = 2**16
_AT_ONCE = 2
# VLLM_REGEX_COMPILATION_TIMEOUT_S: the limits are those of the child, which count its own time only.
_ENVIRONMENT = {"VLLM_REGEX_COMPILATION_TIMEOUT_S": "0", "MALLOC_ARENA_MAX": "2"}


class GrammarProcess:
    """Compiles for all models, each of which has a configuration of vLLM. Life: start (once) -> learn, ask …
    -> aclose (idempotent, also after a failed start)."""

    def __init__(self, owner: TaskOwner, cpu_seconds: int) -> None:
        """cpu_seconds: what one compilation may take of the processor."""
        self._owner, self._cpu_seconds = owner, cpu_seconds
        self._models: dict[int, Any] = {}  # configurations that it has learnt, by their id
        self._learning = asyncio.Lock()
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[CompileResult]] = {}
        self._count = 0
        self.alive = False

    async def start(self) -> None:
        """Imports vLLM, which takes seconds. Errors: Unavailable."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __package__,
            str(self._cpu_seconds),
            stdin=PIPE,
            stdout=PIPE,
            stderr=None,
            limit=_LINE_BYTES,
            env={**os.environ, **_ENVIRONMENT},
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await self._lines.readline()
        except TimeoutError:
            ready = b""
        if not ready:
            await self.aclose()
            raise _unavailable("did not start; see the apiserver's log")
        self.alive = True
        self._reader = self._owner.spawn("grammars", self._read())

    async def learn(self, config: Any) -> None:
        """Lets the process prepare for a model, which takes seconds. Errors: Unavailable."""
        async with self._learning:
            if id(config) not in self._models:
                text = base64.b64encode(pickle.dumps(config)).decode()
                await self._exchange(_START_SECONDS, model=id(config), config=text)
                self._models[id(config)] = config

    def forget(self, config: Any) -> None:
        if self._models.pop(id(config), None) is not None and self.alive:
            self._say(model=id(config), config="")

    async def ask(self, config: Any, task: Task) -> CompileResult:
        """config: that of the model. Errors: Unavailable."""
        await self.learn(config)
        task = {**task, "model": id(config)}
        return await self._exchange(ForkLimits.of(self._cpu_seconds).seconds + _STOP_SECONDS, task=task)

    async def _exchange(self, seconds: float, **line: Any) -> CompileResult:
        """Sends a line, and returns the answer to it. Errors: Unavailable."""
        self._count += 1
        number = self._count
        answered: asyncio.Future[CompileResult] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        try:
            self._say(number=number, **line)
            async with asyncio.timeout(seconds):
                return await answered
        except TimeoutError:
            raise _unavailable("does not answer") from None
        finally:
            del self._asked[number]

    @property
    def _lines(self) -> asyncio.StreamReader:
        assert self._process is not None, "not started"
        assert self._process.stdout is not None, "started with a pipe"
        return self._process.stdout

    def _say(self, **line: Any) -> None:
        assert self._process is not None, "not started"
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        try:
            while line := await self._lines.readline():
                said = json.loads(line)
                answered = self._asked.get(said["number"])
                if answered is not None and not answered.done():
                    answered.set_result(CompileResult(said["problem"], said["limited"]))
        finally:
            self.alive = False
            for answered in self._asked.values():
                if not answered.done():
                    answered.set_exception(_unavailable("ended"))

    async def aclose(self) -> None:
        self.alive = False
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=_STOP_SECONDS)


def _unavailable(what: str) -> Unavailable:
    return Unavailable(f"structured output cannot be checked now: its compiler {what}")


class SharedCompiler:
    """The process that compiles grammars for all models of an apiserver. It imports vLLM, so that it is
    started when it is needed first, and again when it has ended. Life: running … -> aclose (idempotent)."""

    def __init__(
        self,
        limits: SecurityLimits = DEFAULT_LIMITS,
        make: Callable[[TaskOwner, int], GrammarProcess] = GrammarProcess,
    ) -> None:
        self.limits, self._make, self._owner = limits, make, TaskOwner("grammars")
        self._process: GrammarProcess | None = None
        self._starting = asyncio.Lock()
        self.slots = asyncio.Semaphore(_AT_ONCE)

    async def running(self) -> GrammarProcess:
        """Errors: Unavailable."""
        async with self._starting:
            if self._process is not None and not self._process.alive:
                await self._process.aclose()
                self._process = None
            if self._process is None:
                # Kept from here on: a start that fails or is cancelled leaves a process that `aclose` ends.
                self._process = self._make(self._owner, self.limits.grammar_seconds)
                await self._process.start()
            return self._process

    def forget(self, config: Any) -> None:
        if self._process is not None:
            self._process.forget(config)

    async def aclose(self) -> None:
        if self._process is not None:
            await self._process.aclose()
            self._process = None
        await self._owner.aclose()
