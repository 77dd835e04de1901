"""What can be said about a manifest before it is started."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.plan import LocalPlan, plan_local
from llmserve.config.schema import Manifest, ModelSpec
from llmserve.core.errors import StartFailed
from llmserve.doctor import Status
from llmserve.doctor import manifest as checks
from llmserve.runner.host import GIB
from llmserve.runner.machine import HeldPorts, check_free
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import STATE_NAME, ClusterState

_HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:a/b}}\n"


def _manifest(text: str = "") -> Manifest:
    return parse_manifest(_HEAD + text, "m.yaml")


def _planner(cores: int, gpus: int = 0) -> Any:
    ports = iter(range(20000, 30000))
    return lambda manifest: plan_local(manifest, range(cores), lambda: next(ports), range(gpus))


def test_a_right_manifest_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(_HEAD)
    found = checks.load(path)
    assert (found.finding.status, found.thing) == (Status.OK, _manifest())


def test_a_wrong_manifest_says_where(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(_HEAD + "enginee: {}\n")
    found = checks.load(path)
    assert (found.finding.status, found.thing) == (Status.PROBLEM, None)
    assert f"{path}:3: enginee" in found.finding.advice
    assert "no such file" in checks.load(tmp_path / "none.yaml").finding.advice


def test_engines_with_cores_of_their_own() -> None:
    found = checks.engines(_manifest("engine: {device: cpu}"), _planner(4))
    assert found.finding.status is Status.OK
    assert found.finding.value == "prefill-0 on core 0-1; decode-0 on core 2-3"
    assert isinstance(found.thing, LocalPlan)


def test_engines_that_share_a_core() -> None:
    found = checks.engines(_manifest("engine: {device: cpu}"), _planner(1)).finding
    assert found.status is Status.WARNING
    assert "2 engines share 1 core: expect slow tokens." in found.advice


def test_many_engines_are_not_all_named() -> None:
    found = checks.engines(_manifest("engine: {kind: sim}\ndeployment: {replicas: {decode: 9}}"), _planner(1))
    assert found.finding.value.startswith("prefill-0 on any core; decode-0 on any core")
    assert found.finding.value.endswith("; and 2 more")
    assert found.finding.figures == {"engines": 10}


def test_engines_on_gpus() -> None:
    found = checks.engines(_manifest(), _planner(4, gpus=2)).finding
    assert found.value == "prefill-0 on GPU 0; decode-0 on GPU 1"


def test_a_core_that_is_not_there() -> None:
    wanted = "engine: {device: cpu}\ndeployment: {local: {cores: [9]}}"
    found = checks.engines(_manifest(wanted), _planner(2))
    assert (found.finding.status, found.thing) == (Status.PROBLEM, None)
    assert "core 9 is not available" in found.finding.advice


def test_no_port_is_left() -> None:
    def nothing(manifest: Manifest) -> LocalPlan:
        raise StartFailed("no free port was found on this machine")

    assert "no free port" in checks.engines(_manifest(), nothing).finding.advice


def test_a_port_that_is_taken() -> None:
    with HeldPorts() as ports:  # nobody else takes it after the server
        port = ports.pick()
        address = f"127.0.0.1:{port}"
        with socket.create_server(("127.0.0.1", port)):
            taken = checks.ports([address], check_free)
        assert taken.status is Status.PROBLEM
        assert f"{address}: the port is in use" in taken.advice
        assert checks.ports([address], check_free).status is Status.OK


def test_a_model_that_is_ready(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    found = checks.model(ModelSpec(source=f"dir:{tmp_path}", name="mine"))
    assert (found.finding.status, found.finding.value) == (Status.OK, "mine, ready, 0 MiB")


def test_a_model_that_is_still_to_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    found = checks.model(ModelSpec(source=f"gguf:{file}"))
    assert found.finding.status is Status.NOTE
    assert "to be converted" in found.finding.value


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    found = checks.model(ModelSpec(source=f"dir:{tmp_path}/none"))
    assert (found.finding.status, found.thing) == (Status.PROBLEM, None)
    assert "is not a directory" in found.finding.advice


def test_memory_for_the_engines() -> None:
    manifest = _manifest("kv_cache: {memory_gb: 3}\nengine: {tensor_parallel: 2}")
    found = checks.engine_memory(manifest, {"b": GIB}, 100 * GIB)
    assert (found.status, found.value) == (Status.OK, "about 18.4 GiB for 2 engines")
    short = checks.engine_memory(manifest, {"b": GIB}, 10 * GIB)
    assert short.status is Status.WARNING
    assert "Only 10.0 GiB are available: lower kv_cache.memory_gb (now 3)" in short.advice
    alone = _manifest("deployment: {disaggregated: false}")
    assert checks.engine_memory(alone, {"b": 0}, 100 * GIB).value == "about 3.2 GiB for 1 engine"


def test_memory_for_the_engines_of_several_models() -> None:
    large = "{source: hub:a/large, kv_cache: {memory_gb: 4}, replicas: {prefill: 1, decode: 2}}"
    small = "{source: hub:a/small, disaggregated: false}"
    manifest = parse_manifest(f"kind: LLMServe\nmodels: [{large}, {small}]\n", "m.yaml")
    found = checks.engine_memory(manifest, {"large": 2 * GIB, "small": 0}, 100 * GIB)
    assert found.value == "about 27.8 GiB for 4 engines"


def _state(pid: int, started: int) -> ClusterState:
    return ClusterState("id", "mine", "m.yaml", pid, started, 0.0, "ready")


def test_an_empty_run_directory(tmp_path: Path) -> None:
    assert checks.run_directory(tmp_path, lambda state: set()).status is Status.OK


def test_a_run_directory_in_use(tmp_path: Path) -> None:
    _state(os.getpid(), start_ticks(os.getpid())).write(tmp_path)
    found = checks.run_directory(tmp_path, lambda state: set())
    assert (found.status, "in use" in found.value) == (Status.OK, True)


def test_leftovers_of_a_run(tmp_path: Path) -> None:
    _state(os.getpid(), 1).write(tmp_path)
    dead = checks.run_directory(tmp_path, checks.processes_of)
    assert (dead.status, dead.figures) == (Status.NOTE, {"processes": 0})
    living = checks.run_directory(tmp_path, lambda state: {12, 11})
    assert living.status is Status.WARNING
    assert "still run: 11, 12" in living.advice


def test_half_a_state_file(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_text("{")
    found = checks.run_directory(tmp_path, lambda state: set())
    assert found.status is Status.NOTE
    assert "cannot be read" in found.advice
