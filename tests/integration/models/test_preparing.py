"""Several processes that prepare one model, and what is left when one of them is killed."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PREPARING = Path(__file__).with_name("preparing.py")
PATIENCE_SECONDS = 20.0
HALF = "half of it is written"


class Preparing:
    """A running process (preparing.py)."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            (sys.executable, str(PREPARING), *map(str, arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []

    def until(self, start: str) -> str:
        """Waits for a line that starts so; gives the rest of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith(start):
                return self.said[-1].removeprefix(start)
        pytest.fail(f"it ended without '{start}': {self.said}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Prepare = Callable[..., Preparing]


@pytest.fixture
def prepare() -> Iterator[Prepare]:
    started: list[Preparing] = []

    def begin(*arguments: object) -> Preparing:
        started.append(Preparing(*arguments))
        return started[-1]

    yield begin
    for one in started:
        one.kill()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and weights")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_one_converts_and_the_other_waits_and_uses_it(prepare: Prepare, cache: Path, gguf: Path) -> None:
    first = prepare(cache, gguf)
    first.until(HALF)
    second = prepare(cache, gguf)
    second.until("waiting for another process that converts tiny.gguf")
    first.go_on()
    made = first.until("done: ")
    assert second.until("done: ") == made
    assert HALF not in second.said
    assert (Path(made) / "model.safetensors").read_bytes() == gguf.read_bytes()
    assert names(cache) == {Path(made).name, f"{Path(made).name}.lock", "digests.json", "digests.json.lock"}


def test_nothing_of_a_conversion_is_seen_before_it_is_whole(
    prepare: Prepare, cache: Path, gguf: Path
) -> None:
    first = prepare(cache, gguf)
    first.until(HALF)
    assert [name for name in names(cache) if name.endswith("-v1")] == []
    first.go_on()
    assert Path(first.until("done: ")).name in names(cache)


def test_a_killed_conversion_is_made_again(prepare: Prepare, cache: Path, gguf: Path) -> None:
    first = prepare(cache, gguf)
    first.until(HALF)
    waiting = prepare(cache, gguf)
    waiting.until("waiting")
    assert any(".making-" in name for name in names(cache)), "half of the model is there"
    first.kill()
    waiting.until(HALF)
    waiting.go_on()
    made = Path(waiting.until("done: "))
    assert (made / "model.safetensors").read_bytes() == gguf.read_bytes()
    assert names(cache) == {made.name, f"{made.name}.lock", "digests.json", "digests.json.lock"}
    assert prepare(cache, gguf).until("done: ") == str(made)


def converter_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (converter,) = map(int, children)
    return converter


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real converter, which does not get past its first step."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "torch.py").write_text("import time\ntime.sleep(300)\n")
    monkeypatch.setenv("PYTHONPATH", str(libraries))


@pytest.mark.usefixtures("endless")
def test_the_converter_ends_with_the_process_that_started_it(
    prepare: Prepare, tmp_path: Path, gguf: Path
) -> None:
    """It would write on into a directory that the next maker has removed."""
    starter = prepare("--real", gguf, tmp_path / "out")
    starter.until("loading the libraries")
    fd = os.pidfd_open(converter_of(starter.process.pid))
    starter.process.kill()
    ended, _, _ = select.select([fd], [], [], PATIENCE_SECONDS)
    if not ended:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    os.close(fd)
    assert ended


@pytest.mark.usefixtures("endless")
def test_a_converter_that_is_killed_is_said(prepare: Prepare, tmp_path: Path, gguf: Path) -> None:
    starter = prepare("--real", gguf, tmp_path / "out")
    starter.until("loading the libraries")
    os.kill(converter_of(starter.process.pid), signal.SIGKILL)
    said = starter.until("error: ")
    assert said.startswith("cannot convert tiny.gguf (killed by signal 9; is there enough memory?)")


def test_a_damaged_file_is_said_and_no_file_of_the_working_directory_is_run(
    prepare: Prepare, tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llmserve").mkdir()
    (tmp_path / "llmserve" / "__init__.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    starter = prepare("--real", gguf, tmp_path / "out")
    assert starter.until("error: ").startswith("cannot convert tiny.gguf (exit code 1): ")
