"""The process in which grammars are compiled, as the apiserver sees it."""

import asyncio
import base64
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from llmserve.apiserver.grammars.forks import CompileResult, ForkLimits, Task
from llmserve.apiserver.grammars.server import ServerProcess, spawn_server
from llmserve.config.schema.limits import DEFAULT_LIMITS, SecurityLimits
from llmserve.core.errors import Unavailable
from llmserve.core.tasks import TaskOwner

_START_SECONDS = 180.0  # on a machine that is busy; else a new interpreter takes six
_STOP_SECONDS = 5.0
_LINE_BYTES = 2**16
_AT_ONCE = 2


class GrammarProcess:
    """Compiles for all models, each of which has a configuration of vLLM. Life: start (does nothing when it
    has started) -> learn, ask … -> aclose (idempotent, also without a start or after a failed one). ended: it
    cannot be used any more."""

    def __init__(self, owner: TaskOwner, cpu_seconds: int, server: ServerProcess | None = None) -> None:
        """cpu_seconds: what one compilation may take of the processor. server: one that was begun with them;
        None: one is spawned at the start."""
        self._owner, self._cpu_seconds, self._server = owner, cpu_seconds, server
        self._models: dict[int, Any] = {}  # configurations that it has learnt, by their id
        self._learning = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[CompileResult]] = {}
        self._count = 0
        self.ended = False

    async def start(self) -> None:
        """Waits until the server has what it needs of vLLM. Errors: Unavailable."""
        if self._reader is not None:
            return
        self._server = self._server or spawn_server(self._cpu_seconds)
        channel = self._server.channel
        lines, self._writer = await asyncio.open_connection(sock=channel, limit=_LINE_BYTES)
        ready = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_START_SECONDS):
                ready = await lines.readline()
        if not ready:
            await self.aclose()
            raise _unavailable("did not start; see the apiserver's log")
        self._reader = self._owner.spawn("grammars", self._read(lines))

    async def learn(self, config: Any) -> None:
        """Lets the process prepare for a model, which takes seconds. Errors: Unavailable."""
        async with self._learning:
            if id(config) not in self._models:
                text = base64.b64encode(pickle.dumps(config)).decode()
                await self._exchange(_START_SECONDS, model=id(config), config=text)
                self._models[id(config)] = config

    def forget(self, config: Any) -> None:
        if self._models.pop(id(config), None) is not None and not self.ended:
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

    def _say(self, **line: Any) -> None:
        assert self._writer is not None, "not started"
        self._writer.write(json.dumps(line).encode() + b"\n")

    async def _read(self, lines: asyncio.StreamReader) -> None:
        try:
            with suppress(ConnectionError):  # it was killed
                while line := await lines.readline():
                    said = json.loads(line)
                    answered = self._asked.get(said["number"])
                    if answered is not None and not answered.done():
                        answered.set_result(CompileResult(said["problem"], said["limited"]))
        finally:
            self.ended = True
            for answered in self._asked.values():
                if not answered.done():
                    answered.set_exception(_unavailable("ended"))

    async def aclose(self) -> None:
        self.ended = True
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._writer is None:
            server.channel.close()
        else:
            self._writer.close()
        await asyncio.to_thread(_end, server.process)
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=_STOP_SECONDS)


def _end(process: BaseProcess) -> None:
    """Waits for the end of a server whose channel is closed."""
    process.join(_STOP_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _unavailable(what: str) -> Unavailable:
    return Unavailable(f"structured output cannot be checked now: its compiler {what}")


class SharedCompiler:
    """The process that compiles grammars for all models of an apiserver: the one that was forked, and others
    after its end. They are started when they are needed. Life: running … -> aclose (idempotent)."""

    def __init__(
        self,
        limits: SecurityLimits = DEFAULT_LIMITS,
        forked: ServerProcess | None = None,
        make: Callable[[TaskOwner, int, ServerProcess | None], GrammarProcess] = GrammarProcess,
    ) -> None:
        """forked: of `fork_server`, with `limits.grammar_seconds`; it is ended here. None: there is none."""
        self.limits, self._make, self._owner = limits, make, TaskOwner("grammars")
        self._process = self._made(forked)
        self._starting = asyncio.Lock()
        self.slots = asyncio.Semaphore(_AT_ONCE)

    def _made(self, server: ServerProcess | None) -> GrammarProcess:
        return self._make(self._owner, self.limits.grammar_seconds, server)

    async def running(self) -> GrammarProcess:
        """Errors: Unavailable."""
        async with self._starting:
            if self._process.ended:
                await self._process.aclose()
                self._process = self._made(None)
            await self._process.start()
            return self._process

    def forget(self, config: Any) -> None:
        self._process.forget(config)

    async def aclose(self) -> None:
        await self._process.aclose()
        await self._owner.aclose()
