"""What the original projects' clients get: vLLM's answer, in the shape of each project's own."""

import json
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.completion.api_router import create_completion

from llmserve.apiserver.original.bodies import Body, ChatBody

_LINE_END = re.compile("\r\n|\r|\n")


async def _answer(body: Body, raw: Request) -> Response:
    route = create_chat_completion if isinstance(body, ChatBody) else create_completion
    answer: Response = await route(body, raw)
    return answer


async def whole(body: Body, raw: Request, shape: Callable[[Sequence[str]], dict[str, Any]]) -> Response:
    """shape: makes the answer of the texts. Returns vLLM's own answer when that is an error."""
    body.stream = False
    answer = await _answer(body, raw)
    if not isinstance(answer, JSONResponse) or answer.status_code != 200:
        return answer
    return JSONResponse(shape([_text_of(choice) for choice in json.loads(bytes(answer.body))["choices"]]))


class AnswerPart(NamedTuple):
    """A part of a streamed answer. id: that of the answer. choice: its number. error: what ends the
    stream instead, as vLLM describes it."""

    id: str = ""
    choice: int = 0
    text: str = ""
    error: dict[str, Any] | None = None


async def streamed(
    body: Body,
    raw: Request,
    frames: Callable[[AsyncIterator[AnswerPart], float], AsyncIterator[str]],
    media_type: str = "text/event-stream",
) -> Response:
    """frames: makes the parts of the body; it is told when the request began. Errors are as in `whole`."""
    body.stream, began = True, time.monotonic()
    answer = await _answer(body, raw)
    if not isinstance(answer, StreamingResponse):
        return answer
    return StreamingResponse(frames(_parts(answer.body_iterator), began), media_type=media_type)


async def _parts(events: AsyncIterable[Any]) -> AsyncIterator[AnswerPart]:
    async for event in events:
        if not event.startswith("data: {"):  # a comment, or the end
            continue
        content = json.loads(event.removeprefix("data: "))
        if "error" in content:
            yield AnswerPart(error=content["error"])
            return
        for choice in content["choices"]:
            if text := _text_of(choice):
                yield AnswerPart(content["id"], choice["index"], text)


def _text_of(choice: dict[str, Any]) -> str:
    """Returns the text of a choice of a completion, a chat, or an event of a chat."""
    holder = choice.get("message") or choice.get("delta") or {}
    return choice.get("text") or holder.get("content") or ""


async def timed_events(parts: AsyncIterator[AnswerPart], began: float) -> AsyncIterator[str]:
    """Yields events as TorchWeave sends them."""
    waits = True
    async for part in parts:
        if part.error is not None:
            yield _event(part.error["message"], "error")
            return
        if waits:
            yield _event(f"{time.monotonic() - began:.4f}", "ttft")
            waits = False
        yield _event(part.text)
    yield _event("", "done")


async def token_events(parts: AsyncIterator[AnswerPart], began: float) -> AsyncIterator[str]:
    """Yields events as the server of ch03 sends them."""
    async for part in parts:
        shown = {"token": part.text, "sequence_id": part.id} if part.error is None else {"error": part.error}
        yield _event(json.dumps(shown))


async def growing_texts(parts: AsyncIterator[AnswerPart], began: float) -> AsyncIterator[str]:
    """Yields lines of all texts so far, as vLLM's demo server sends them."""
    texts: dict[int, str] = {}
    async for part in parts:
        texts[part.choice] = texts.get(part.choice, "") + part.text
        so_far = {"text": [text for _, text in sorted(texts.items())]}
        yield json.dumps(so_far if part.error is None else {"error": part.error}) + "\n"


def _event(data: str, name: str = "") -> str:
    """data: may have several lines, which clients put together again."""
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return f"event: {name}\n{lines}\n" if name else f"{lines}\n"
