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


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no json", "Expecting value"),
        ("[]", "version None"),
        ('{"version": 2}', "version 2, and this release knows 1"),
        ('{"version": 1}', "no snapshot of models"),
        (
            json.dumps({"version": 1, "last_number": 1, "registrations": [{"number": 1}], "declared": {}}),
            "was saved as",
        ),
    ],
)
def test_what_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ModelBookSnapshot.from_json(text)
