"""Several processes that prepare one model, and what is left when one of them is killed."""

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.models.helper import StartHelper, helpers

PATIENCE_SECONDS = 20.0
HALF = "half of it is written"


@pytest.fixture
def prepare() -> Iterator[StartHelper]:
    with helpers("preparing.py") as begin:
        yield begin


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


def test_one_converts_and_the_other_waits_and_uses_it(prepare: StartHelper, cache: Path, gguf: Path) -> None:
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
    prepare: StartHelper, cache: Path, gguf: Path
) -> None:
    first = prepare(cache, gguf)
    first.until(HALF)
    assert [name for name in names(cache) if name.endswith("-v1")] == []
    first.go_on()
    assert Path(first.until("done: ")).name in names(cache)


def test_a_killed_conversion_is_made_again(prepare: StartHelper, cache: Path, gguf: Path) -> None:
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
    prepare: StartHelper, tmp_path: Path, gguf: Path
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
def test_a_converter_that_is_killed_is_said(prepare: StartHelper, tmp_path: Path, gguf: Path) -> None:
    starter = prepare("--real", gguf, tmp_path / "out")
    starter.until("loading the libraries")
    os.kill(converter_of(starter.process.pid), signal.SIGKILL)
    said = starter.until("error: ")
    assert said.startswith("cannot convert tiny.gguf (killed by signal 9; is there enough memory?)")


def test_a_damaged_file_is_said_and_no_file_of_the_working_directory_is_run(
    prepare: StartHelper, tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llmserve").mkdir()
    (tmp_path / "llmserve" / "__init__.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    starter = prepare("--real", gguf, tmp_path / "out")
    assert starter.until("error: ").startswith("cannot convert tiny.gguf (exit code 1): ")
