"""The process in which grammars are compiled, as the apiserver sees it."""

import asyncio
import base64
import json
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

from llmserve.apiserver.grammars.forks import CompileResult, ForkLimits, Task
from llmserve.core.errors import Unavailable
from llmserve.core.tasks import TaskOwner

_START_SECONDS = 180.0  # on a machine that is busy; else it takes six
_STOP_SECONDS = 5.0
_LINE_BYTES = 2**16
# VLLM_REGEX_COMPILATION_TIMEOUT_S: the limits are those of the child, which count its own time only.
_ENVIRONMENT = {"VLLM_REGEX_COMPILATION_TIMEOUT_S": "0", "MALLOC_ARENA_MAX": "2"}


class GrammarProcess:
    """Life: start (once) -> ask … -> aclose (idempotent, also after a failed start). config: vLLM's."""

    def __init__(self, config: Any, owner: TaskOwner) -> None:
        self._config, self._owner = config, owner
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
            stdin=PIPE,
            stdout=PIPE,
            stderr=None,
            limit=_LINE_BYTES,
            env={**os.environ, **_ENVIRONMENT},
        )
        self._write(base64.b64encode(pickle.dumps(self._config)))
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

    async def ask(self, task: Task) -> CompileResult:
        """Errors: Unavailable."""
        self._count += 1
        number = self._count
        answered: asyncio.Future[CompileResult] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        try:
            self._write(json.dumps({"number": number, "task": task}).encode())
            async with asyncio.timeout(ForkLimits().seconds + _STOP_SECONDS):
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

    def _write(self, line: bytes) -> None:
        assert self._process is not None, "not started"
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.write(line + b"\n")

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
