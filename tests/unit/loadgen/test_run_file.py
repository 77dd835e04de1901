"""A run is kept as a file while it goes on and afterwards."""

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.core.errors import LLMServeError, Unavailable
from llmserve.loadgen.report import About, Slo, make_report
from llmserve.loadgen.run_file import FOLDER, RunFile, RunPoint, new_path, point, thinned
from tests.unit.loadgen.records import failed, served


def _drive(*records: Any, running: int = 0) -> Any:
    watch = SimpleNamespace(now=lambda: 1.5)
    tokens = sum(one.output_tokens for one in records)
    lost = sum(not one.served for one in records)
    return SimpleNamespace(records=records, failed=lost, running=running, output_tokens=tokens, watch=watch)


def test_a_point_has_totals_and_the_medians_of_what_is_new() -> None:
    drive = _drive(served(first=9.0), served(first=0.1), served(first=0.3), failed(), running=2)
    assert point(1.5, drive, drive.records[1:]) == RunPoint(1.5, 4, 1, 2, 9, 0.2, 0.4)
    assert point(1.5, drive, [failed()]) == RunPoint(1.5, 4, 1, 2, 9, None, None)


def test_a_long_run_keeps_its_first_and_last_points() -> None:
    points = [RunPoint(float(at), at, 0, 0, 0, None, None) for at in range(7)]
    assert [one.requests for one in thinned(points)] == [0, 2, 4, 6]
    assert [one.requests for one in thinned(points[:6])] == [0, 2, 4, 5]


async def test_the_file_says_how_far_it_is_and_then_how_it_was(tmp_path: Path) -> None:
    path = new_path(tmp_path)
    assert path.parent == tmp_path / FOLDER
    records = [served()]
    with RunFile(path, "a load") as file:
        assert json.loads(path.read_text())["state"] == "starting"
        async with file.watched(_drive(*records)):
            await asyncio.sleep(0)
            running = json.loads(path.read_text())
        assert (running["state"], running["load"], running["report"]) == ("running", "a load", None)
        assert running["points"] == [
            {
                "seconds": 1.5,
                "requests": 1,
                "failed": 0,
                "running": 0,
                "output_tokens": 3,
                "ttft": 0.5,
                "e2e": 0.7,
            }
        ]
        about = About("http://a", "m", "a load", 1, "tokens", "2026-01-01T00:00:00+00:00")
        file.ended(make_report(records, about, Slo(), {}))
    ended = json.loads(path.read_text())
    assert (ended["state"], ended["report"]["served"], len(ended["points"])) == ("ended", 1, 2)


def test_a_run_that_raises_is_kept_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(Unavailable), RunFile(path, "a load"):
        raise Unavailable("nobody answers")
    assert json.loads(path.read_text())["state"] == "failed"
    assert json.loads(path.read_text())["error"] == "nobody answers"


def test_the_latest_twenty_are_kept(tmp_path: Path) -> None:
    for number in range(100, 125):
        with RunFile(tmp_path / f"{number}.json", ""):
            pass
    assert sorted(path.stem for path in tmp_path.iterdir()) == [str(number) for number in range(105, 125)]


def test_what_a_killed_run_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    for name, age in (("left.new", 61), ("being-written.new", 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with RunFile(tmp_path / "run.json", ""):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["being-written.new", "run.json"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(LLMServeError, match=r"file/run\.json cannot be written"),
        RunFile(tmp_path / "file" / "run.json", ""),
    ):
        pass


def test_without_a_path_there_is_no_file(tmp_path: Path) -> None:
    with RunFile(None, "a load"):
        pass
    assert list(tmp_path.iterdir()) == []
