"""Batches in a temporary directory, whose lines are answered by a fake."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch
from prometheus_client import CollectorRegistry

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.batches.call import LineAnswer
from llmserve.apiserver.batches.disk import DiskStorage
from llmserve.apiserver.batches.files import FileLimits, FileStore, NewFile
from llmserve.apiserver.batches.run import RunParts
from llmserve.apiserver.batches.slots import LineSlots
from llmserve.apiserver.batches.storage import BatchStorage
from llmserve.apiserver.batches.store import BatchStore, NewBatch
from llmserve.core.ids import TenantId
from llmserve.metrics.apiserver import BatchMetrics

CHAT = "/v1/chat/completions"
RED = TenantId("red")
PATIENCE_SECONDS = 20.0  # on a machine that is busy with real engines
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class FakeCaller:
    """Answers with the prompt, or as `answers` says for it. hold: prompts that get no answer before `go`."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.callers: list[Caller] = []
        self.request_ids: list[str] = []
        self.answers: dict[str, list[LineAnswer | Exception]] = {}
        self.hold: set[str] = set()
        self.go = asyncio.Event()
        self.running = self.most_running = 0

    async def post(self, caller: Caller, path: str, request_id: str, body: bytes) -> LineAnswer:
        prompt = json.loads(body)["prompt"]
        self.prompts.append(prompt)
        self.callers.append(caller)
        self.request_ids.append(request_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await (self.go.wait() if prompt in self.hold else asyncio.sleep(0))
        finally:
            self.running -= 1
        if self.answers.get(prompt):
            answer = self.answers[prompt].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return LineAnswer(200, json.dumps({"text": prompt, "usage": USAGE}).encode())


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a change that reaches nobody by itself, as one on a disk."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def line(name: str, **fields: Any) -> bytes:
    body = {"model": "m", "prompt": name}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body} | fields).encode()


async def pieces(*texts: bytes) -> AsyncIterator[bytes]:
    for text in texts:
        yield text


@dataclass
class Bench:
    """Everything that runs of batches share. now: the Unix time."""

    storage: BatchStorage
    now: float = 1_800_000_000.0
    caller: FakeCaller = field(default_factory=FakeCaller)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    keep_seconds: float = 10_000.0
    file_bytes: int = 10_000
    concurrency: int = 4
    max_lines: int = 1000
    max_line_bytes: int = 10_000

    def __post_init__(self) -> None:
        limits = FileLimits(self.file_bytes, 2 * self.file_bytes, self.keep_seconds)
        self.metrics = BatchMetrics(self.registry)
        self.parts = RunParts(
            files=FileStore(self.storage, limits, lambda: self.now),
            store=BatchStore(self.storage, self.keep_seconds, lambda: self.now),
            caller=self.caller,
            slots=LineSlots(self.concurrency),
            metrics=self.metrics,
            max_lines=self.max_lines,
            max_line_bytes=self.max_line_bytes,
            now=lambda: self.now,
            look_seconds=0.01,
        )
        self.files, self.store = self.parts.files, self.parts.store

    async def submit(self, *lines: bytes, seconds: float = 3600.0, tenant: TenantId = RED) -> Batch:
        file = await self.files.upload(NewFile(tenant, "in.jsonl", "batch"), pieces(b"\n".join(lines)))
        return await self.store.create(Caller(tenant), NewBatch(CHAT, file.id, "1h", seconds))

    async def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        text = b"".join([piece async for piece in self.files.contents(file_id)])
        return [json.loads(row) for row in text.splitlines()]

    async def results(self, batch_id: str, tenant: TenantId = RED) -> dict[str, Any]:
        """What each line has, by its id: its text, its status, or the code of its error."""
        batch = await self.store.get(tenant, batch_id)
        found = {}
        for row in [*await self.rows(batch.output_file_id), *await self.rows(batch.error_file_id)]:
            response = row["response"]
            answer = row["error"]["code"] if response is None else response["body"].get("text")
            found[row["custom_id"]] = answer or response["status_code"]
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(DiskStorage(tmp_path / "batches"))
