"""The KV store behind one real vLLM engine: what it saves, what it costs.

The engine has core 1; the KV manager, the S3 server and the rest have the other. One engine at a time.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.store import answers, chat, first_token, writing_cost
from bench.store.engine import engine, store_connector
from bench.store.manager import Manager, dram, manager, nvme, s3
from llmserve.config.load import load_manifest
from llmserve.models import resolve
from tests.support.seaweed import BUCKET, Seaweed, credentials

PARTS = ("first-token", "cost", "chat", "answers")
GRIDS = ("none", "int8", "fp8")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")


def run(parts: Sequence[str]) -> str:
    return asyncio.run(_run(parts))


async def _run(parts: Sequence[str]) -> str:
    primary = load_manifest(Path("llmserve.yaml")).model
    model = Path(resolve(primary).path)
    tables: list[str] = []
    os.environ.update(credentials())
    with (
        tempfile.TemporaryDirectory(prefix="llmserve-bench-") as made,
        manager(Path(made), primary.source) as kv,
    ):
        scratch = Path(made)
        if "first-token" in parts or "cost" in parts:
            tables += await _with_one_engine(parts, model, kv, scratch)
        if "chat" in parts:
            tables.append("Chat:\n\n" + await chat.run(model, kv, scratch))
        if "answers" in parts:
            tables.append("Answers:\n\n" + await answers.run(model, kv, GRIDS))
    return "\n\n".join(tables)


async def _with_one_engine(parts: Sequence[str], model: Path, kv: Manager, scratch: Path) -> list[str]:
    tables, first, cost = [], [], []
    with _s3_server(scratch / "s3") as server:
        async with engine(model, store_connector(kv.endpoint)) as asker:
            if "first-token" in parts:
                first = await first_token.ours(asker, kv, scratch, server)
            if "cost" in parts:
                below = [nvme(2, scratch / "roomy"), s3(2, BUCKET, server.endpoint)]
                full = [nvme(0.125, scratch / "small"), s3(0.125, BUCKET, server.endpoint)]
                cost = await writing_cost.rows(asker, kv, [dram(1), *below], [dram(0.125), *full])
    if first:
        first += await first_token.vllms(model, scratch)
        tables.append("Time to first token:\n\n" + first_token.table(first))
    if cost:
        tables.append("Cost of storing:\n\n" + writing_cost.table(cost))
    return tables


@contextmanager
def _s3_server(directory: Path) -> Iterator[Seaweed]:
    directory.mkdir()
    server = Seaweed(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()
