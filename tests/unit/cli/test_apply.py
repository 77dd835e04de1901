"""What `llmserve apply` says of engines on GPUs: the machine and nvidia-smi are made up."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmserve.cli import apply, main
from llmserve.core.errors import LLMServeError
from llmserve.runner import machine, preflight
from llmserve.runner.gpus import LINKS

_HEAD = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"
_DRAM = "storageClasses: [{name: a, tier: dram, capacity_gb: 0.25}]\n"
_NVLINK = "nixl: CUDA IPC over NVLink (NV18); ucx, tcp: pinned host memory, then a socket"


def _nvidia_smi(command: Sequence[str]) -> str:
    cell = "NV18" if command == LINKS else "OK"
    return f"  GPU0 GPU1\nGPU0 X {cell}\nGPU1 {cell} X\n"


def _no_driver(command: Sequence[str]) -> str:
    raise LLMServeError("nvidia-smi is not installed")


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two engines, on a machine with two GPUs joined by NVLink."""
    for module in (machine, preflight):
        monkeypatch.setattr(module, "available_gpus", lambda: (0, 1))
    monkeypatch.setattr(preflight, "parsers_here", lambda: None)
    monkeypatch.setattr(apply, "run_tool", _nvidia_smi)
    path = tmp_path / "m.yaml"
    path.write_text(_HEAD + _DRAM)
    return path


def test_the_path_of_each_pair_and_the_pinned_memory(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", "-f", str(manifest)]) == 0
    said = capsys.readouterr().out
    assert f"Note: KV goes from prefill-0 > decode-0: {_NVLINK}." in said
    pinned = "up to 448 MiB: 2 x 96 MiB for the slots of each rank, 256 MiB for the KV store's DRAM"
    assert f"Note: Pinned host memory: {pinned}." in said


def test_what_is_not_known_is_said(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apply, "run_tool", _no_driver)
    assert main(["apply", "-f", str(manifest)]) == 0
    assert "prefill-0 > decode-0: nixl: unknown (nvidia-smi does not tell); ucx" in capsys.readouterr().out


def test_the_same_as_json(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "-f", str(manifest), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (path,) = found["kv_paths"]
    assert path["between"] == "prefill-0 > decode-0"
    assert [name for name, _ in path["ways"]] == ["nixl", "ucx", "tcp"]
    assert found["pinned"] == {"rank_bytes": 96 << 20, "ranks": 2, "store_bytes": 256 << 20}


def test_more_pinned_memory_than_there_is(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(_HEAD + _DRAM.replace("0.25", "1000000"))
    assert main(["apply", "-f", str(manifest)]) == 2
    assert f"{manifest}:3: storageClasses[0].capacity_gb: the engines pin up to" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["engine: {device: cpu}\n", "deployment: {disaggregated: false}\n"])
def test_nothing_is_said_where_no_kv_moves_between_gpus(
    manifest: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    manifest.write_text(_HEAD + text)
    assert main(["apply", "-f", str(manifest)]) == 0
    said = capsys.readouterr().out
    assert "KV goes" not in said
    assert "Pinned" not in said


def test_pods_have_no_cuda_ipc_between_them(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(f"{_HEAD}deployment: {{mode: k8s}}\n{_DRAM}")
    assert main(["apply", "-f", str(manifest)]) == 0
    said = capsys.readouterr().out
    assert "Note: KV goes from prefill > decode: ucx, tcp: pinned host memory, then a socket." in said
    assert "Note: Pinned memory of each pod: up to 96 MiB: 1 x 96 MiB for the slots of each rank." in said


def test_nixl_between_pods_is_doubted_with_its_line(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest.write_text(f"{_HEAD}deployment: {{mode: k8s}}\ntransfer: {{engine_order: [nixl]}}\n")
    assert main(["apply", "-f", str(manifest)]) == 0
    assert f"Warning: {manifest}:4: transfer.engine_order: has nixl, which finds" in capsys.readouterr().out


def test_pods_on_cpus(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(f"{_HEAD}deployment: {{mode: k8s}}\nengine: {{device: cpu}}\n")
    assert main(["apply", "-f", str(manifest)]) == 0
    assert "Note:" not in capsys.readouterr().out
