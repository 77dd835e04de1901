"""What the user of `llmserve up` sees."""

import ast
import io
import json
import subprocess
import textwrap
from typing import Any

import pytest
from rich.console import Console as RichConsole

from llmserve.config.schema import Manifest
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.console import Console, ready_banner

AS_THEY_ARE = ["a [red]b[/] [/nothing] [x]", "file.py:100: in f :smile:", "\\[x] C:\\"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Broken(io.StringIO):
    """A terminal that is gone."""

    writes = 0

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        self.writes += 1
        raise self._error


def made(out: io.StringIO, clock: Clock, terminal: bool = False) -> tuple[Console, Board]:
    rich = RichConsole(file=out, width=100, force_terminal=terminal, color_system=None, highlight=False)
    console, board = Console(rich, clock), Board(["router-0"], clock)
    console.follow(board)
    return console, board


def test_without_a_terminal_each_change_is_a_line() -> None:
    out, clock = io.StringIO(), Clock()
    console, board = made(out, clock)
    console.live(True)
    clock.now = 2.5
    board.set("router-0", ProcessState.STARTING, "importing", pid=1)
    console.refresh()
    console.live(False)
    assert out.getvalue().split() == ["2.5", "s", "router-0", "starting", "importing"]


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_texts_are_shown_as_they_are(text: str) -> None:
    out = io.StringIO()
    console, board = made(out, Clock())
    console.say(text)
    board.set("router-0", ProcessState.STARTING, text)
    said, changed = out.getvalue().splitlines()
    assert said == text
    assert changed.endswith(text)


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_a_terminal_has_a_table_with_the_time_so_far(text: str) -> None:
    out, clock = io.StringIO(), Clock()
    console, board = made(out, clock, terminal=True)
    console.live(True)
    board.set("router-0", ProcessState.STARTING, text)
    clock.now = 7.2
    console.refresh()
    assert text in out.getvalue()
    assert "7 s" in out.getvalue()
    board.set("router-0", ProcessState.READY)
    console.live(False)
    end = out.getvalue().rstrip().rpartition("process")[2]
    assert "ready" in end
    assert "7 s" not in end, "what is ready is not counted"


def test_long_lines_are_not_cut() -> None:
    out = io.StringIO()
    console, _ = made(out, Clock())
    console.say("x" * 500)
    assert out.getvalue() == "x" * 500 + "\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("closed file")])
def test_a_terminal_that_is_gone_stops_nothing(error: Exception, terminal: bool) -> None:
    out = Broken(error)
    console, board = made(out, Clock(), terminal)
    console.live(True)
    console.say("hello")
    board.set("router-0", ProcessState.READY)
    seen = out.writes
    console.say("again")
    console.refresh()
    console.live(False)
    assert seen > 0
    assert out.writes == seen, "nothing is shown any more"


URL = "http://127.0.0.1:8000"
KEYED = {"api_keys": [{"tenant": "me", "key": "secret"}]}


def greeted(urls: tuple[str, ...] = (URL,), **sections: Any) -> str:
    models = {"primary": {"source": "hub:org/name", "name": "my-model"}}
    manifest = Manifest.model_validate({"kind": "LLMServe", "models": models, **sections})
    return ready_banner(manifest, urls, 12.6, "/run/logs")


def test_several_models_are_named_and_the_first_is_asked() -> None:
    models = [{"source": "hub:org/large"}, {"source": "hub:org/small"}]
    text = ready_banner(
        Manifest.model_validate({"kind": "LLMServe", "models": models}), (URL,), 12.6, "/run/logs"
    )
    assert f"Ready after 13 s. large, small are at {URL}/v1" in text
    assert json.loads(command(text)[-1])["model"] == "large"


def command(text: str) -> list[str]:
    """The arguments that a shell would give curl."""
    pasted = text[text.index("  curl") :].split("\n\n")[0]
    script = f"curl() {{ printf '%s\\0' \"$@\"; }}\n{pasted}\n"
    environment = {"LLMSERVE_API_KEY": "my key"}
    done = subprocess.run(("bash", "-c", script), capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


def program(text: str) -> str:
    start = min(text.index(word) for word in ("  import os", "  from openai") if word in text)
    return textwrap.dedent(text[start:].split("\n\n")[0])


def test_it_says_when_where_and_what() -> None:
    text = greeted()
    assert f"Ready after 13 s. my-model is at {URL}/v1" in text
    assert "Logs: /run/logs" in text
    assert "llmserve status" in text
    assert "llmserve down" in text


def test_all_apiservers_are_named() -> None:
    text = greeted((URL, "http://127.0.0.1:8001"))
    assert "and at http://127.0.0.1:8001/v1" in text
    assert text.count(f"{URL}/v1\n") == 1


def test_curl_is_a_command() -> None:
    url, *options = command(greeted())
    assert url == f"{URL}/v1/chat/completions"
    assert options[:3] == ["-H", "Content-Type: application/json", "-d"]
    body = json.loads(options[3])
    assert body["model"] == "my-model"
    assert body["messages"][0]["role"] == "user"


def test_with_keys_both_examples_take_one_from_the_environment() -> None:
    text = greeted(security=KEYED)
    assert "Authorization: Bearer my key" in command(text)
    assert 'api_key=os.environ["LLMSERVE_API_KEY"]' in program(text)
    assert program(text).startswith("import os\n")
    assert "secret" not in text


def test_with_a_certificate_it_says_how_an_authority_of_ones_own_is_trusted() -> None:
    hint = "curl --cacert FILE, and SSL_CERT_FILE=FILE for Python"
    assert hint in greeted(security={"tls": {"certificate": "tls.crt", "key": "tls.key"}})
    assert hint not in greeted()


def test_the_python_example_is_a_program() -> None:
    for text in (greeted(), greeted(security=KEYED)):
        tree = ast.parse(program(text))
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert {f"{URL}/v1", "my-model"} <= strings


def test_it_says_where_the_console_is() -> None:
    assert f"  Console: {URL}/ui\n" in greeted()


def test_where_the_metrics_are_is_said_where_there_are_any() -> None:
    assert "Metrics:" not in greeted()
    manifest = Manifest.model_validate(
        {"kind": "LLMServe", "models": {"primary": {"source": "hub:org/name"}}}
    )
    text = ready_banner(manifest, (URL,), 12.6, "/run/logs", "127.0.0.1:9400")
    assert "  Metrics: http://127.0.0.1:9400/metrics\n" in text
