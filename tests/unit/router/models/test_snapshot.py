"""What a router saves of its models, and what it takes for that."""

import json

import pytest

from llmserve.config.wanted_models import ModelState
from llmserve.router.models.registration import ModelRegistration
from llmserve.router.models.snapshot import ModelBookSnapshot


def test_it_comes_back_as_it_was() -> None:
    one = ModelRegistration(7, "b", '{"source":"hub/b"}', swap="a", state=ModelState.STARTING, directory="/b")
    text = ModelBookSnapshot(9, (one,), {"a": "{}"}).to_json()
    back = ModelBookSnapshot.from_json(text)
    assert (back.last_number, back.declared) == (9, {"a": "{}"})
    assert [each.saved() for each in back.registrations] == [one.saved()]
    assert back.registrations[0].state is ModelState.STARTING
    assert back.to_json() == text


def _saved(**more: object) -> str:
    """Returns a book with one model, as `to_json` wrote it before models could be pulled."""
    one = {"number": 7, "name": "b", "entry": '{"source":"hub/b"}', "declared": False, "state": "starting"}
    one |= {"directory": "/b", "error": "", "message": "", "swap": "a", "swapped": ""}
    return json.dumps({"version": 1, "last_number": 9, "registrations": [one | more], "declared": {}})


def test_an_earlier_release_reads_a_book_without_what_it_does_not_know() -> None:
    """It refuses a book with a field that is new to it, and would forget every model."""
    one = ModelRegistration(7, "b", '{"source":"hub/b"}', swap="a", state=ModelState.STARTING, directory="/b")
    assert json.loads(ModelBookSnapshot(9, (one,)).to_json()) == json.loads(_saved())
    one.pull = True
    assert json.loads(ModelBookSnapshot(9, (one,)).to_json()) == json.loads(_saved(pull=True))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no json", "Expecting value"),
        ("[]", "version None"),
        ('{"version": 2}', "version 2, and this release knows 1"),
        ('{"version": 1}', "no snapshot of models"),
        (
            json.dumps({"version": 1, "last_number": 1, "registrations": [{"number": 1}], "declared": {}}),
            "model None has no declared, directory",
        ),
        (_saved(sleeps=True, after="x"), "model b has after, sleeps: a later release wrote that"),
    ],
)
def test_what_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ModelBookSnapshot.from_json(text)
