"""The line with which a process says why it ends."""

import json

import pytest

from llmserve.core.errors import EngineDead, LLMServeError, ManifestError, ModelNotFound, StartFailed
from llmserve.rpc.role import FAILED_WORD, Failure, report_failure


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ManifestError("a.b: no", key=("a", 1, "b")), Failure("a.b: no", True, ("a", 1, "b"))),
        (ManifestError("m.yaml:1: no"), Failure("m.yaml:1: no", True)),
        (ModelNotFound("none"), Failure("none", True)),
        (StartFailed("port\ntaken"), Failure("port\ntaken", False)),
        (EngineDead("dead"), Failure("dead", False)),
    ],
)
def test_what_is_said_is_what_is_read(
    error: LLMServeError, failure: Failure, capsys: pytest.CaptureFixture[str]
) -> None:
    report_failure("decode-0", error)
    (line,) = capsys.readouterr().out.splitlines()
    word, _, text = line.partition(" ")
    assert (word, Failure.read(text)) == (FAILED_WORD, failure)


@pytest.mark.parametrize("text", ["", "{", "7", "{}", json.dumps({"message": "x", "lasts": True, "key": 1})])
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Failure.read(text)
