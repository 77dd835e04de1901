"""What is printed when the cluster is ready can be pasted into a shell and a Python file."""

import ast
import json
import subprocess
import textwrap
from typing import Any

from llmserve.config.schema import Manifest
from llmserve.runner.greeting import greeting

URL = "http://127.0.0.1:8000"
KEYED = {"api_keys": [{"tenant": "me", "key": "secret"}]}


def greeted(urls: tuple[str, ...] = (URL,), **sections: Any) -> str:
    models = {"primary": {"source": "hub:org/name", "name": "my-model"}}
    manifest = Manifest.model_validate({"kind": "LLMServe", "models": models, **sections})
    return greeting(manifest, urls, 12.6, "/run/logs")


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


def test_the_python_example_is_a_program() -> None:
    for text in (greeted(), greeted(security=KEYED)):
        tree = ast.parse(program(text))
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert {f"{URL}/v1", "my-model"} <= strings


def test_where_the_metrics_are_is_said_where_there_are_any() -> None:
    assert "Metrics:" not in greeted()
    manifest = Manifest.model_validate(
        {"kind": "LLMServe", "models": {"primary": {"source": "hub:org/name"}}}
    )
    text = greeting(manifest, (URL,), 12.6, "/run/logs", "127.0.0.1:9400")
    assert "  Metrics: http://127.0.0.1:9400/metrics\n" in text
