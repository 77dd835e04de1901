"""What LoRA adapters cost, beside one plain `vllm serve` that has the same adapters and all cores.

Throughput: the same prompts in a closed loop for the model itself (adapters not enabled, then enabled), and
for 1, 4 and all adapters by Zipf 1.0 over 4 slots. First token: an adapter that is in a slot, that was
prefetched, and that a request finds in DRAM, on disk, or nowhere yet but in a bucket. On a CPU the plain
vLLM gathers an adapter's weights for each token, which is slow; the cluster's engines group by adapter.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from obstore.store import S3Store

from bench.adapters.ask import MODEL, LoadSize, loaded
from bench.adapters.first_tokens import Row, cold, from_source, near
from bench.adapters.plain import plain_vllm
from bench.cluster import running
from bench.table import markdown
from llmserve.config.schema import ModelSpec
from llmserve.loadgen.report import LoadReport
from llmserve.models import resolve
from tests.support.adapters import AdapterShape, random_adapter
from tests.support.seaweed import BUCKET, Seaweed, credentials

SLOTS = 4
SHAPE = AdapterShape(rank=8, modules=("q_proj", "v_proj"))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", type=int, default=100, help="in all (default: 100)")
    parser.add_argument("--requests", type=int, default=200, help="of each load (default: 200)")
    parser.add_argument("--users", type=int, default=4, help="at the same time (default: 4)")
    parser.add_argument("--repeats", type=int, default=7, help="of each first token (default: 7)")


def run(adapters: int, requests: int, users: int, repeats: int) -> str:
    if adapters < SLOTS + 1 + repeats:
        raise SystemExit(f"--adapters: at least {SLOTS + 1} more than --repeats")
    with tempfile.TemporaryDirectory(prefix="llmserve-adapters-") as scratch:
        bench = _Bench(Path(scratch), _made(Path(scratch), adapters), LoadSize(requests, users), repeats)
        return f"{bench.throughput()}\n\n{bench.first_tokens()}"


def _made(scratch: Path, count: int) -> Mapping[str, Path]:
    """Random adapters by name."""
    names = [f"adapter-{number:03}" for number in range(count)]
    return {name: random_adapter(scratch / name, _model(), at, SHAPE) for at, name in enumerate(names)}


def _model() -> Path:
    return resolve(ModelSpec.model_validate(_spec()["models"]["primary"])).path


def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(Path("llmserve.yaml").read_text())["spec"]
    return spec


@dataclass(slots=True)
class _Bench:
    """first: rows of the table of first tokens."""

    scratch: Path
    folders: Mapping[str, Path]
    size: LoadSize
    repeats: int
    first: list[Row] = field(default_factory=list)

    def throughput(self) -> str:
        """The cluster that has them all measures the first tokens that need no other one, too."""
        names = list(self.folders)
        loads = {
            "the model itself": [],
            "one adapter": names[:1],
            **{f"{count} adapters": names[:count] for count in (SLOTS, len(names))},
        }
        with running(_manifest(None)) as cluster:
            alone = asyncio.run(loaded(cluster.url, [], self.size))
        with running(_manifest(self.folders)) as cluster:
            ours = {what: asyncio.run(loaded(cluster.url, some, self.size)) for what, some in loads.items()}
            self.first += asyncio.run(near(cluster, names, SLOTS, self.repeats))
        with plain_vllm(_model(), self.folders, SLOTS, SHAPE.rank, self.scratch / "vllm.log") as url:
            theirs = {what: asyncio.run(loaded(url, some, self.size)) for what, some in loads.items()}
        rows = [_load_row("the model itself, adapters not enabled", alone, alone, None)]
        rows += [_load_row(what, ours[what], alone, theirs[what]) for what in loads]
        heads = ("requests for", "tokens/s", "of the first row", "first token p50, ms", "p99, ms")
        return markdown((*heads, "plain vLLM: tokens/s", "first token p50, ms"), rows)

    def first_tokens(self) -> str:
        names = list(self.folders)
        with running(_manifest(self.folders, dram_gb=0)) as cluster:
            self.first += asyncio.run(cold("disk", cluster, names, SLOTS, self.repeats))
        self.first += self._from_bucket()
        heads = ("first token of", "seconds", "where workers had it")
        return markdown(heads, self.first)

    def _from_bucket(self) -> list[Row]:
        """Loads adapters that no worker has, and asks each once."""
        names, where = list(self.folders)[: self.repeats], f"s3://{BUCKET}/adapters"
        server = Seaweed(self.scratch / "s3")
        before = dict(os.environ)
        os.environ.update(credentials())
        server.start()
        try:
            for name in names:
                _upload(server, name, self.folders[name])
            with running(_manifest({}, endpoint=server.endpoint, allowed_sources=[where])) as cluster:
                sources = {name: f"{where}/{name}" for name in names}
                return asyncio.run(from_source("a bucket (S3)", cluster, sources))
        finally:
            server.kill()
            os.environ.clear()
            os.environ.update(before)


def _manifest(folders: Mapping[str, Path] | None, **lora: Any) -> dict[str, Any]:
    """folders: None: adapters are not enabled."""
    spec = _spec()
    spec["models"]["primary"]["name"] = MODEL
    spec["kv_cache"] = {"memory_gb": 0.5}
    spec["scheduling"] = {"disaggregate": "always"}
    if folders is not None:
        spec["lora"] = {"slots": SLOTS, "max_rank": SHAPE.rank, **lora}
        spec["models"]["adapters"] = [
            {"name": name, "source": f"dir:{path}"} for name, path in folders.items()
        ]
    return {"apiVersion": "llmserve/v1", "kind": "LLMServe", "metadata": {"name": "bench"}, "spec": spec}


def _load_row(what: str, found: LoadReport, alone: LoadReport, plain: LoadReport | None) -> Row:
    rate = found.output_tokens_per_second
    cells = (
        f"{rate:.1f}",
        f"{rate / alone.output_tokens_per_second:.2f}",
        _ms(found.ttft.p50),
        _ms(found.ttft.p99),
    )
    others = (f"{plain.output_tokens_per_second:.1f}", _ms(plain.ttft.p50)) if plain else ("", "")
    return (what, *cells, *others)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def _upload(server: Seaweed, name: str, folder: Path) -> None:
    store = S3Store(BUCKET, endpoint=server.endpoint, client_options={"allow_http": True})
    for file in folder.iterdir():
        store.put(f"adapters/{name}/{file.name}", file.read_bytes())
