"""The places of a run, and the command and environment of each process."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.core.errors import StartFailed
from llmserve.engines.vllm.environment import preloaded
from llmserve.runner.environment import (
    RunPaths,
    fetch_command,
    make_paths,
    role_command,
    role_mark,
)

PATHS = RunPaths(Path("/m/m.yaml"), Path("/run"), Path("/logs"), Path("/temp"))
CLUSTER = "0123456789abcdef"


@pytest.fixture
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_temporary_directory_carries_the_cluster_in_its_name(temp_dir: Path) -> None:
    paths = make_paths(Path("m.yaml"), Path("/run"), None, CLUSTER)
    assert paths.temp_dir.parent == temp_dir
    assert paths.temp_dir.name.startswith("llmserve-01234567-")
    assert paths.temp_dir.is_dir()
    assert paths.manifest == Path.cwd() / "m.yaml"


@pytest.mark.parametrize(
    ("log_dir", "place"),
    [(None, Path("/run/logs")), ("logs", Path("/m/logs")), ("/l", Path("/l")), ("~/l", Path.home() / "l")],
)
def test_where_the_logs_are(temp_dir: Path, log_dir: str | None, place: Path) -> None:
    paths = make_paths(Path("/m/m.yaml"), Path("/run"), log_dir, CLUSTER)
    assert paths.log("router-0") == place / "router-0.log"


def test_no_place_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StartFailed, match="temporary directory"):
        make_paths(Path("/m/m.yaml"), Path("/run"), None, CLUSTER)


def test_the_environment_of_a_role() -> None:
    spec = ProcessSpec(
        ProcessRole.DECODE,
        "decode-0",
        "llmserve.workers",
        env={"A": "spec", "B": "spec", "HF_HUB_OFFLINE": "1"},
    )
    base = {"A": "base", "KEPT": "base", "TMPDIR": "base", "HF_HUB_OFFLINE": "0"}
    env = role_command(spec, PATHS, {"m": "/model"}, CLUSTER, base).env
    assert env == {
        "A": "spec",
        "B": "spec",
        "KEPT": "base",
        "TMPDIR": "/temp",
        "VLLM_RPC_BASE_PATH": "/temp",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "HF_HUB_OFFLINE": "1",
        "LLMSERVE_ADAPTER_DRAM": "/dev/shm/temp",
        "LLMSERVE_CLUSTER_SECRET_FILE": "/temp/secret",
        "LLMSERVE_MEMBER": f"{CLUSTER}/decode-0",
    }
    assert base["A"] == "base"


def test_a_worker_of_an_engine_on_cpus_preloads_what_vllm_does() -> None:
    made = {"VLLM_CPU_OMP_THREADS_BIND": "0"}
    spec = ProcessSpec(ProcessRole.DECODE, "decode-0", "llmserve.workers", env=made)
    env = role_command(spec, PATHS, {}, CLUSTER, {"LD_PRELOAD": "/libx.so"}).env
    assert env["LD_PRELOAD"] == preloaded("/libx.so")


def test_the_command_of_a_role() -> None:
    spec = ProcessSpec(
        ProcessRole.DECODE, "decode-0", "llmserve.workers", listen="h:1", args=("--role", "decode"), model="m"
    )
    command = role_command(spec, PATHS, {"m": "/model"}, CLUSTER, {})
    assert list(command.arguments) == [
        *("-P", "-m", "llmserve.workers"),
        *("--manifest", "/m/m.yaml", "--name", "decode-0", "--run-dir", "/run", "--metrics-port", "0"),
        *("--listen", "h:1", "--model", "m", "--model-dir", "/model", "--role", "decode"),
    ]
    assert command.log == Path("/logs/decode-0.log")


def test_the_preparation_of_the_model_may_use_the_network() -> None:
    command = fetch_command(PATHS, "model", CLUSTER, {"A": "base"})
    assert list(command.arguments) == ["-P", "-m", "llmserve.models", "pull", "--manifest", "/m/m.yaml"]
    assert command.env["LLMSERVE_MEMBER"] == role_mark(CLUSTER, "model")
    assert command.env["TMPDIR"] == "/temp"
    assert command.env["A"] == "base"
    assert "HF_HUB_OFFLINE" not in command.env


def test_a_directory_of_certificates_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    make = partial(make_paths, tmp_path / "m.yaml", tmp_path / "run", None, CLUSTER)
    shutil.rmtree(make("certs").temp_dir)
    with pytest.raises(StartFailed, match=f"there is no directory {tmp_path}/cert; `llmserve certs init`"):
        make("cert")
