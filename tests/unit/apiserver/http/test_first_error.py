"""The errors of a wrong body do not grow with the body."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from llmserve.apiserver.http.first_error import first_error_validator

MANY = 500


class Part(BaseModel):
    type: Literal["text"]


class Message(TypedDict):
    role: Literal["user", "system"]
    content: str | list[Part]


class Inner(BaseModel):
    """Its own check, which pydantic builds with the class, would note all errors."""

    texts: list[str] = []


class Body(BaseModel):
    messages: list[Message] | list[list[Message]] | str = ""
    metadata: dict[str, str] | None = None
    pairs: tuple[int, ...] = ()
    inner: Inner | None = None
    type: Literal["list", "dict"] = "list"
    free: dict[str, Any] = {"type": "list"}


@pytest.fixture
def validator() -> Any:
    return first_error_validator(TypeAdapter(Body))


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{}] * MANY},
        {"messages": [[{}] * MANY] * MANY},
        {"messages": [{"role": "user", "content": [{}] * MANY}] * MANY},
        {"metadata": {str(key): key for key in range(MANY)}},
        {"pairs": ["x"] * MANY},
        {"inner": {"texts": [1] * MANY}},
    ],
)
def test_one_entry_of_many_is_reported(validator: Any, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        validator.validate_python(body)
    assert raised.value.error_count() < 10


def test_each_wrong_field_is_reported(validator: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        validator.validate_python({"pairs": ["x"], "inner": {"texts": [1]}, "type": "x"})
    assert {one["loc"][0] for one in raised.value.errors()} == {"pairs", "inner", "type"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}] * MANY},
        {"metadata": {str(key): "x" for key in range(MANY)}, "pairs": range(MANY)},
        {"inner": {"texts": ["x"]}, "type": "dict", "free": {"a": 1}},
    ],
)
def test_what_is_fine_is_read_as_before(validator: Any, body: dict[str, Any]) -> None:
    assert validator.validate_python(body) == Body.model_validate(body)
