"""A supervisor with fake roles, as a process of its own, so that it can be killed. Whatever a test does to
it, nothing of it may be left at the end of the test."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmserve.runner.process.family import MEMBER_VARIABLE, Family, members
from llmserve.runner.state import ClusterState, read_state

HERE = Path(__file__).parent
PATIENCE_SECONDS = 40.0
KEPT = {"lock", "logs", "events"}
"""What stays in a run directory."""
AFTER = {"decode": ("kvmanager-0", "router-0"), "apiserver": ("router-0",)}
"""As plan_local has it."""


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

    def order(self, *kinds: str) -> list[tuple[str, str]]:
        return [(e[0], e[1]) for e in self.events() if e[0] in kinds]

    def output(self) -> str:
        return self._output.read_text()

    def state(self) -> ClusterState | None:
        return read_state(self.run_dir)

    def members(self) -> set[int]:
        """The processes of the cluster that carry its mark: all but the supervisor and its guard."""
        state = self.state()
        return members(Family(f"{state.cluster_id}/", frozenset())) if state else set()

    def guards(self) -> list[int]:
        return [pid for pid in children_of(self.process.pid) if "llmserve.runner.guard" in command_line(pid)]

    def crash(self, name: str) -> None:
        (self.run_dir / f"crash-{name}").touch()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not happen:\n{self.output()}\n{self.events()}")
            time.sleep(0.02)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.output(), f"'{text}'")

    def until_ready(self) -> None:
        self.until(self._is_ready, "ready")

    def _is_ready(self) -> bool:
        state = self.state()  # which may be that of the one before
        return state is not None and (state.pid, state.stand) == (self.process.pid, "ready")

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def kill_all(self) -> None:
        """Ends what the test left running, and waits until the guard is gone too."""
        watched = {*self.guards(), *self.pids(), *self.pids("grandchild")}
        self.process.kill()
        self.process.wait()
        for pid in filter(is_member, watched):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.until(lambda: not any(map(alive, watched)), f"the end of {watched}")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def is_member(pid: int) -> bool:
    with suppress(OSError):
        return MEMBER_VARIABLE.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    return alive


@pytest.fixture
def segment() -> Iterator[Path]:
    """A name in /dev/shm."""
    path = Path(f"/dev/shm/llmserve-test-{uuid.uuid4().hex}")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


Start = Callable[..., Supervised]


def _control(terminal: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*names of roles, **manifest keys of deployment.local) -> Supervised, all in one run directory.
    behave: what a role does otherwise than by default (fake_role.py). listen, http: the addresses of roles.
    source: of the model, which is then really prepared. deaf: nobody reads the supervisor's stdout.
    terminal: the file descriptor of one that controls it.
    metrics_port: of the page of all processes; 0: none; None: the manifest says nothing of it."""
    running: list[Supervised] = []
    temp_dir, run_dir = tmp_path / "temp", tmp_path / "run"
    for folder in (temp_dir, run_dir):
        folder.mkdir()

    def begin(
        *names: str,
        behave: dict[str, dict[str, Any]] | None = None,
        listen: dict[str, str] | None = None,
        http: dict[str, str] | None = None,
        verbose: bool = False,
        deaf: bool = False,
        source: str | None = None,
        log_dir: Path | None = None,
        terminal: int | None = None,
        metrics_port: int | None = 0,
        **local: Any,
    ) -> Supervised:
        index = len(running)
        roles = [
            {
                "role": name.rpartition("-")[0],
                "name": name,
                "after": [other for other in AFTER.get(name.rpartition("-")[0], ()) if other in names],
                "behaviour": (behave or {}).get(name, {}),
                "listen": (listen or {}).get(name),
                "http": (http or {}).get(name),
            }
            for name in names
        ]
        manifest = tmp_path / "m.yaml"
        sections = {
            "kind": "LLMServe",
            "models": {"primary": {"source": source or "dir:/no/model"}},
            "deployment": {"local": local},
            "observability": {
                "log_dir": str(log_dir) if log_dir else None,
                **({} if metrics_port is None else {"port": metrics_port}),
            },
        }
        manifest.write_text(json.dumps(sections))
        job = {
            "run_dir": str(run_dir),
            "manifest": str(manifest),
            "roles": roles,
            "verbose": verbose,
            "prepare_model": source is not None,
        }
        (tmp_path / f"job{index}.json").write_text(json.dumps(job))
        output = tmp_path / f"output{index}"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(HERE), *filter(None, [os.environ.get("PYTHONPATH")]))),
            "LLMSERVE_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONHASHSEED": "7",
            "TMPDIR": str(temp_dir),
        }
        with output.open("wb") as out:
            process = subprocess.Popen(
                (sys.executable, str(HERE / "supervise.py"), str(tmp_path / f"job{index}.json")),
                stdout=subprocess.PIPE if deaf else out,
                stderr=out if deaf else subprocess.STDOUT,
                env=environment,
                start_new_session=terminal is not None,
                preexec_fn=None if terminal is None else lambda: _control(terminal),
            )
        if process.stdout is not None:
            process.stdout.close()
        running.append(Supervised(process, run_dir, output))
        return running[-1]

    yield begin
    for one in running:
        one.kill_all()
    for one in running[-1:]:  # its guard may have been at work
        one.until(lambda: not any(temp_dir.iterdir()), "the removal of temporary directories")
        one.until(lambda: {path.name for path in run_dir.iterdir()} <= KEPT, "the removal of the state file")
