"""What a client is told of a body that does not have the form of its route."""

import difflib
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, model_validator
from typing_extensions import TypedDict

from llmserve.apiserver.http.wrong_body import wrong_body


class UserMessage(TypedDict):
    role: Literal["user"]
    content: str


class SystemMessage(TypedDict):
    role: Literal["system"]
    content: str


class ToolMessage(TypedDict):
    role: Literal["tool"]
    call_id: str
    content: str


class Body(BaseModel):
    messages: list[ToolMessage | UserMessage | SystemMessage] = []
    stop: str | list[str] = ""
    n: int = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    size: Literal["small", "large"] = "small"
    a: int = 0
    b: int = 0
    c: int = 0

    @model_validator(mode="after")
    def _check(self) -> "Body":
        if self.n == 7:
            raise ValueError("n must not be 7")
        return self


@pytest.fixture
def http() -> httpx.AsyncClient:
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    async def answer(_: Any, error: RequestValidationError) -> JSONResponse:
        problem = wrong_body(error)
        return JSONResponse([problem.message, problem.param], problem.status)

    @app.post("/")
    async def take(body: Body) -> None: ...

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        ({"n": "ten"}, "n: expected a whole number, got the text 'ten'", "n"),
        ({"temperature": "hot"}, "temperature: expected a number, got the text 'hot'", "temperature"),
        ({"temperature": -1}, "temperature: must be at least 0, got -1", "temperature"),
        ({"messages": "hi"}, "messages: expected a list, got the text 'hi'", "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role: missing", "messages.0.role"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0.call_id: missing",
            "messages.0.call_id",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content: expected text, got 5",
            "messages.0.content",
        ),
        ({"stop": 1}, "stop: expected text, got 1; stop: expected a list, got 1", "stop"),
        ({"n": 7}, "n must not be 7", None),
        (
            {"n": "x", "temperature": "x", "a": "x", "b": "x", "c": "x"},
            "n: expected a whole number, got the text 'x'; temperature: expected a number, got the text 'x'; "
            "a: expected a whole number, got the text 'x'; b: expected a whole number, got the text 'x'; "
            "and 1 more",
            "n",
        ),
        ([], "expected a mapping of keys, got a list", None),
    ],
)
async def test_each_field_has_a_sentence(
    http: httpx.AsyncClient, body: Any, message: str, field: str | None
) -> None:
    answer = await http.post("/", json=body)
    assert (answer.status_code, answer.json()) == (400, [message, field])


async def test_a_long_value_is_not_compared_with_each_choice(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def none_is_close(word: str, *_: object, **__: object) -> list[str]:
        compared.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", none_is_close)
    answer = await http.post("/", json={"size": "s" * 1_000_000})
    assert answer.json()[1] == "size"
    assert [len(word) for word in compared] == [200]


async def test_a_body_that_is_no_json(http: httpx.AsyncClient) -> None:
    kind = {"content-type": "application/json"}
    answer = await http.post("/", content=b'{"n":', headers=kind)
    assert answer.json() == ["the body is not JSON: Expecting value at character 5", None]
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl sends without -H
    answer = await http.post("/", content=b'{"n": 1}', headers=form)
    assert answer.json() == [
        "the body has to be JSON, with the header `Content-Type: application/json`",
        None,
    ]
