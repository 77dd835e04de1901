"""The line with which a process says why it ends."""

import json

import pytest

from llmserve.core.errors import EngineDead, LLMServeError, ManifestError, ModelNotFound, StartFailed
from llmserve.rpc.role import FAILED_WORD, ProcessFailure, failed


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ManifestError("a.b: no", key=("a", 1, "b")), ProcessFailure("a.b: no", True, ("a", 1, "b"))),
        (ManifestError("m.yaml:1: no"), ProcessFailure("m.yaml:1: no", True)),
        (ModelNotFound("none"), ProcessFailure("none", True)),
        (StartFailed("port\ntaken"), ProcessFailure("port\ntaken", False)),
        (EngineDead("dead"), ProcessFailure("dead", False)),
    ],
)
def test_what_is_said_is_what_is_read(
    error: LLMServeError, failure: ProcessFailure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failed("decode-0", error) == 1
    (line,) = capsys.readouterr().out.splitlines()
    word, _, text = line.partition(" ")
    assert (word, ProcessFailure.read(text)) == (FAILED_WORD, failure)


@pytest.mark.parametrize("text", ["", "{", "7", "{}", json.dumps({"message": "x", "lasts": True, "key": 1})])
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        ProcessFailure.read(text)
