"""`llmserve profile`: what is written, and what is told of it."""

import argparse
import gzip
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.cli import profile
from llmserve.cli.profile import COMMAND, save, summary_of, summary_of_trace
from llmserve.core.errors import LLMServeError, NotFound, WorkerLost
from llmserve.rpc.gen.llmserve.v1 import worker_pb2


async def pieces(*given: tuple[str, bytes], ends_with: Exception | None = None) -> AsyncIterator[Any]:
    for name, data in given:
        yield worker_pb2.ProfilePiece(file=name, data=data)
    if ends_with is not None:
        raise ends_with


async def test_files_come_in_pieces_and_stay_in_the_folder(tmp_path: Path) -> None:
    files = await save(pieces(("a", b"1"), ("a", b"2"), ("../b", b"3")), tmp_path)
    assert files == [tmp_path / "a", tmp_path / "b"]
    assert [file.read_bytes() for file in files] == [b"12", b"3"]


async def test_what_a_killed_run_left_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"old")
    assert [file.read_bytes() for file in await save(pieces(("a", b"1"), ("a", b"2")), tmp_path)] == [b"12"]


async def test_a_profile_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost):
        await save(pieces(("a", b"1"), ends_with=WorkerLost("gone")), tmp_path)
    assert os.listdir(tmp_path) == []


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLMServeError, match="none: a profile cannot be written: "):
        await save(pieces(("a", b"1")), tmp_path / "none")


def test_the_functions_with_most_samples_come_first() -> None:
    folded = "main;run (a.py:1) 2\nmain;run (a.py:1);wait (b.py:2) 5\nother;wait (b.py:2) 1\n"
    assert list(summary_of(folded, 300)) == [
        "Python code ran in 8 of 300 samples; most of them in",
        " 75.0 %  wait (b.py:2)",
        " 25.0 %  run (a.py:1)",
    ]
    assert list(summary_of("", 300)) == ["Python code ran in 0 of 300 samples"]


def trace(*spans: tuple[str, str, str, float, float]) -> bytes:
    """spans: kind, thread, name, start and length in microseconds."""
    events = [
        {"ph": "X", "cat": kind, "pid": 1, "tid": tid, "name": name, "ts": start, "dur": length, "args": {}}
        for kind, tid, name, start, length in spans
    ]
    named = {"ph": "M", "name": "process_name", "args": {"name": "rank 0"}}
    return gzip.compress(json.dumps({"schemaVersion": 1, "traceEvents": [named, *events]}).encode())


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ((), ["nothing was computed: no request ran here meanwhile"]),
        (
            (
                ("Trace", "all", "the record", 0, 9e6),
                ("cpu_op", "1", "copy", 1e6, 0.5e6),
                ("cpu_op", "1", "step", 0, 2e6),  # with two copies in it
                ("cpu_op", "1", "copy", 1.5e6, 0.25e6),
                ("cpu_op", "2", "copy", 1e6, 0.25e6),  # in another thread
                ("cpu_op", "2", "fill", 1.25e6, 1.75e6),
            ),
            [
                "the CPU computed for 4.00 s; most of it",
                " 43.8 %        1 x  fill",
                " 31.2 %        1 x  step",
                " 25.0 %        3 x  copy",
            ],
        ),
        (
            (
                ("cuda_runtime", "1", "launch", 0, 1e6),
                ("gpu_user_annotation", "s", "step", 0, 9e6),
                ("kernel", "s", "k" * 90, 2e6, 1e6),
            ),
            [
                "the GPU computed for 1.00 s; most of it",
                f"100.0 %        1 x  {'k' * 80}",
                "the CPU computed for 1.00 s; most of it",
                "100.0 %        1 x  launch",
            ],
        ),
    ],
)
def test_operations_that_took_most_time_without_those_in_them_come_first(
    spans: Any, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "trace").write_bytes(trace(*spans))
    assert list(summary_of_trace(tmp_path / "trace")) == told


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    roles = [
        {"name": "router-0", "role": "router", "pid": os.getpid(), "listen": "h:1"},
        {"name": "decode-0", "role": "decode", "pid": 7, "listen": "h:2"},
    ]
    found = SimpleNamespace(state=SimpleNamespace(roles=roles, name="c"), credentials=None)
    monkeypatch.setattr(profile, "find_cluster", lambda options: found)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.configure(parser)
    return COMMAND.run(parser.parse_args(arguments))


def test_a_name_that_is_none_is_answered_with_those_that_are(cluster: None) -> None:
    with pytest.raises(NotFound, match="no process decode-9 in c: there are router-0, decode-0"):
        run("decode-9")


def test_a_worker_is_asked_for_its_engine(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def ask(*given: object) -> AsyncIterator[Any]:
        asked.extend(given)
        return pieces(("trace", trace(("cpu_op", "1", "copy", 0, 1e6))))

    monkeypatch.setattr(profile, "_ask", ask)
    assert run("decode-0", "--seconds", "2", "--out", str(tmp_path / "new")) == 0
    assert asked == ["h:2", None, 2.0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "recording decode-0 for 2 s"
    assert lines[2:] == ["100.0 %        1 x  copy", f"written: {tmp_path / 'new' / 'trace'}"]


@pytest.mark.parametrize("arguments", [("router-0",), ("decode-0", "--python")])
def test_other_code_is_sampled(
    cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    tool = tmp_path / "py-spy"
    tool.write_text('#!/bin/sh\nfor last; do :; done\necho "main;$4 9" > "$last"\n')
    tool.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert run(*arguments, "--out", str(tmp_path / "out")) == 0
    pid = os.getpid() if arguments[0] == "router-0" else 7
    (file,) = (tmp_path / "out").iterdir()
    assert file.read_text() == f"main;{pid} 9\n"
    assert "Python code ran in 9 of 500 samples" in capsys.readouterr().out
    tool.write_text("#!/bin/sh\necho 'Error: Permission denied' >&2\nexit 1\n")
    with pytest.raises(
        LLMServeError, match=rf"cannot record {arguments[0]}, process {pid}: Error: Permission"
    ):
        run(*arguments, "--out", str(tmp_path / "out"))


def test_without_py_spy_it_is_said(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LLMServeError, match="py-spy is not installed: pip install py-spy"):
        run("router-0", "--out", str(tmp_path))
