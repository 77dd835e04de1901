"""A cluster of simulated engines, of which two tenants want more than it has, with more adapters than slots:
for dashboards to show."""

import asyncio
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from bench.cluster import Cluster, running
from bench.ports import free_port
from llmserve.config.schema import ModelSpec
from llmserve.models import resolve
from llmserve.rpc.callers import CallerRole
from tests.support.adapters import AdapterShape, random_adapter
from tests.support.simulated import simulated
from tests.support.store_worker import StoreWorker, chain

MODEL = "SmolLM2-135M-Instruct"
KEYS = {"gold": "gold-key", "basic": "basic-key"}
ASKERS_OF_EACH = 12
ADAPTERS = tuple(f"adapter-{number}" for number in range(5))
BLOCKS_OF_EACH, PAUSE_SECONDS = 4, 0.25  # of the chains that are stored


def manifest(disk: str, adapters: Path) -> dict[str, Any]:
    """Limits so low that requests wait and some are refused, and a DRAM tier that soon is full. adapters: a
    directory for their files."""
    found = simulated("speculation.yaml")
    found["metadata"]["name"] = "observed"
    spec = found["spec"]
    spec["transfer"] = {}  # all transports are shown
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 2}
    spec["scheduling"] = {
        "max_queued_requests": 10,
        "queue_timeout_seconds": 20,
        "weights": [{"tenant": "gold", "weight": 3}],
    }
    spec["budgets"] = {
        "max_requests_in_flight": 10,
        "max_tokens_in_flight": 20000,
        "hbm_gb": 1,
        "max_kv_io_gbps": 10,
    }
    spec["storageClasses"] = [
        {"name": "memory", "tier": "dram", "capacity_gb": 0.0625},
        {"name": "disk", "tier": "nvme", "capacity_gb": 0.5, "location": disk},
    ]
    spec["engine"]["sim"] = {
        "prefill_tokens_per_second": 12000,
        "decode_step_seconds": 0.012,
        "decode_seconds_per_sequence": 0.0001,
        "acceptance": 0.3,
        "proposed_token_seconds": 0.0002,
        "blocks": 8192,
        "vocab_size": 49152,
    }
    spec["lora"] = {"slots": 2}
    spec["models"]["adapters"] = [
        {"name": name, "source": f"dir:{_made(adapters / name, seed, spec)}"}
        for seed, name in enumerate(ADAPTERS)
    ]
    spec["security"] = {"api_keys": [{"tenant": tenant, "key": key} for tenant, key in KEYS.items()]}
    spec["observability"] = {"port": free_port()}
    return found


def _made(folder: Path, seed: int, spec: dict[str, Any]) -> Path:
    model = resolve(ModelSpec.model_validate(spec["models"]["primary"])).path
    return random_adapter(folder, model, seed, AdapterShape(modules=("q_proj",)))


@contextmanager
def observed_cluster() -> Iterator[tuple[Cluster, str]]:
    """The cluster, and host:port of the page of all its metrics."""
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory() as adapters:
        made = manifest(disk, Path(adapters))
        with running(made) as cluster:
            yield cluster, f"127.0.0.1:{made['spec']['observability']['port']}"


async def ask_for(cluster: Cluster, seconds: float, crash: str = "") -> None:
    """Both tenants ask all the time, for so long. crash: the process that is killed half-way."""
    async with httpx.AsyncClient(timeout=30) as http, asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(_store_and_load, cluster, seconds))
        askers = [
            group.create_task(_ask_always(http, cluster.url, key, random.Random(index)))
            for key in KEYS.values()
            for index in range(ASKERS_OF_EACH)
        ]
        await asyncio.sleep(seconds / 2)
        if crash:
            os.kill(cluster.pid(crash), signal.SIGKILL)
        await asyncio.sleep(seconds / 2)
        for asker in askers:
            asker.cancel()


async def _ask_always(http: httpx.AsyncClient, url: str, key: str, rng: random.Random) -> None:
    shared = [rng.randrange(1000, 40000) for _ in range(200)]
    while True:
        prompt = shared + [rng.randrange(1000, 40000) for _ in range(rng.randrange(50, 400))]
        model = rng.choice((MODEL, *ADAPTERS))
        body = {"model": model, "prompt": prompt, "max_tokens": rng.randrange(20, 60)}
        with suppress(httpx.HTTPError):
            headers = {"Authorization": f"Bearer {key}"}
            answer = await http.post(f"{url}/v1/completions", json=body, headers=headers)
            if answer.status_code != 200:
                await asyncio.sleep(0.2)


def _store_and_load(cluster: Cluster, seconds: float) -> None:
    """What engines would do with the KV store: simulated ones keep nothing there."""
    until = time.monotonic() + seconds
    address, name = cluster.role("kvmanager-0")["listen"], "storage-0"
    shown = cluster.credentials(CallerRole.WORKER, name).metadata()
    with StoreWorker(address, name=name, shown=shown) as worker:
        for number in itertools.count():
            if time.monotonic() > until:
                return
            worker.store(chain(f"c{number}", BLOCKS_OF_EACH), "gold")
            worker.load(chain(f"c{max(0, number - number % 20)}", BLOCKS_OF_EACH), "gold")
            time.sleep(PAUSE_SECONDS)
