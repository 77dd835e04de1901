"""--watch: page after page, until Ctrl-C; what is away is said, and looked for again."""

import json

import pytest
from rich.text import Text

from llmserve.cli.screen import Frame, watch
from llmserve.core.errors import LLMServeError, Unavailable


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("llmserve.cli.screen.time.sleep", found.append)
    return found


class Outcomes:
    def __init__(self, *outcomes: str | LLMServeError) -> None:
        self._outcomes = list(outcomes)

    def look(self) -> Frame:
        if not self._outcomes:
            raise KeyboardInterrupt
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, LLMServeError):
            raise outcome
        return Frame(lambda width: Text(f"{outcome} {width}"), {"said": outcome})


AWAY = Unavailable("no cluster runs in [here]")


def test_without_a_terminal_one_page_after_the_other(
    capsys: pytest.CaptureFixture[str], pauses: list[float]
) -> None:
    watch(Outcomes("one", AWAY, "two").look, 2.5, as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line for line in lines if "Ctrl-C" not in line] == [
        "one 140",
        "no cluster runs in [here]. Looking again.",
        "two 140",
    ]
    assert pauses == [2.5, 2.5, 2.5]


def test_json_has_a_line_for_each_look(capsys: pytest.CaptureFixture[str]) -> None:
    watch(Outcomes("one", AWAY, "two").look, 1.0, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"said": "one"},
        {"healthy": False, "problems": ["no cluster runs in [here]"]},
        {"said": "two"},
    ]


def test_what_was_never_there_is_an_error() -> None:
    with pytest.raises(Unavailable, match="no cluster runs"):
        watch(Outcomes(AWAY).look, 1.0, as_json=False)
