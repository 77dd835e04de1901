"""How a process logs, from the manifest and the environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """
import logging, os, warnings
from llmserve.config.schema import Observability
from llmserve.rpc.role import configure_logging
configure_logging(Observability(log_format={format!r}, log_level="info"), "decode-0")
logging.getLogger("llmserve.x").info("ready")
warnings.warn("old", stacklevel=1)
print(os.environ.get("VLLM_LOGGING_CONFIG_PATH", ""))
print(open(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read() if {format!r} == "json" else "")
{then}
raise ValueError("no\\nway")
"""
_IN_A_THREAD = """
import threading
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
"""
_UNRAISABLE = """
class Odd:
    def __del__(self):
        raise KeyError("odd")
Odd()
"""


def run(log_format: str, then: str = "", **environment: str) -> tuple[list[str], list[str]]:
    """Lines of stdout and of stderr."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "LLMSERVE_"))}
    program = _PROGRAM.format(format=log_format, then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env | environment
    )
    assert done.returncode == 1
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_json_is_in_every_line_warnings_and_the_last_words_too() -> None:
    (path, written), lines = run("json")
    said: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [line["level"] for line in said] == ["info", "warning", "critical"]
    assert said[2]["error"] == "ValueError"
    assert {line["process"] for line in said} == {"decode-0"}
    assert json.loads(written)["formatters"]["json"]["process"] == "decode-0"
    assert not Path(path).exists(), "removed at the end"


@pytest.mark.parametrize(
    ("then", "level", "error"),
    [(_IN_A_THREAD, "critical", "ZeroDivisionError"), (_UNRAISABLE, "error", "KeyError")],
    ids=["in a thread", "in a finalizer"],
)
def test_what_nobody_catches_is_a_line_of_json(then: str, level: str, error: str) -> None:
    _, lines = run("json", then)
    said = [json.loads(line) for line in lines]
    assert [(line["level"], line["error"]) for line in said if "error" in line] == [
        (level, error),
        ("critical", "ValueError"),
    ]


def test_who_configures_vllms_logging_knows_better(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text("{}")
    (path, written), _ = run("json", VLLM_LOGGING_CONFIG_PATH=str(own))
    assert (path, written) == (str(own), "{}")
    assert own.exists()


@pytest.mark.parametrize(("level", "is_there"), [("info", True), ("error", False)])
def test_people_read_lines_and_the_environment_wins(level: str, is_there: bool) -> None:
    (path, _), lines = run("human", LLMSERVE_LOG_LEVEL=level)
    assert path == ""
    assert any(line.endswith("INFO decode-0 llmserve.x: ready") for line in lines) is is_there
    assert lines[-1] == "way"
