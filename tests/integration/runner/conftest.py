"""A supervisor with fake roles, as a process of its own, so that it can be killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmserve.runner.state import ClusterState, read_state

HERE = Path(__file__).parent
PATIENCE_SECONDS = 20.0


class Supervised:
    """A running supervisor, and what its roles wrote."""

    def __init__(self, process: subprocess.Popen[bytes], run_dir: Path, output: Path) -> None:
        self.process = process
        self.run_dir = run_dir
        self._output = output

    def events(self) -> list[list[str]]:
        path = self.run_dir / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self, kind: str = "started", name: str | None = None) -> list[int]:
        return [int(e[2]) for e in self.events() if e[0] == kind and (name is None or e[1] == name)]

    def output(self) -> str:
        return self._output.read_text()

    def state(self) -> ClusterState | None:
        return read_state(self.run_dir)

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not happen:\n{self.output()}\n{self.events()}")
            time.sleep(0.02)

    def until_ready(self) -> None:
        self.until(lambda: "Ready after" in self.output(), "ready")

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    return alive


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path, model_dir: Path) -> Iterator[Start]:
    """start(roles, **manifest keys of deployment.local) -> Supervised. All are killed at the end."""
    running: list[Supervised] = []

    def begin(roles: list[dict[str, Any]], *, verbose: bool = False, **local: Any) -> Supervised:
        run_dir, index = tmp_path / "run", len(running)
        run_dir.mkdir(exist_ok=True)
        manifest = tmp_path / "m.yaml"
        manifest.write_text(
            f"kind: LLMServe\nmodels: {{primary: {{source: 'dir:{model_dir}'}}}}\n"
            f"deployment: {{local: {json.dumps(local)}}}\n"
        )
        job = {"run_dir": str(run_dir), "manifest": str(manifest), "roles": roles, "verbose": verbose}
        (tmp_path / f"job{index}.json").write_text(json.dumps(job))
        output = tmp_path / f"output{index}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "LLMSERVE_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONHASHSEED": "7",
        }
        with output.open("wb") as out:
            process = subprocess.Popen(
                (sys.executable, str(HERE / "supervise.py"), str(tmp_path / f"job{index}.json")),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        running.append(Supervised(process, run_dir, output))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.wait()
    for one in running:
        for pid in (*one.pids(), *one.pids("grandchild")):
            one.until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]
