"""The routes of the original projects: bodies, answers, and what joins them.

    original's body -> body of /v1/completions or /v1/chat/completions -> vLLM's route -> original's answer

Keys, tenants, budgets, limits and errors are those of vLLM's routes. docs/compatibility.md says from which
project each route is.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, model_validator
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.models.doors import ModelDoors
from llmserve.config.schema import EngineConfig, Manifest
from llmserve.core.errors import DeadlineExceeded, InvalidRequest, QueueFull, Unavailable
from llmserve.models import default_cache_dir
from llmserve.models.local import local_models
from llmserve.models.search import search_hub
from llmserve.rpc.model_calls import ModelClient

_MAX_TOKENS = 128  # where the client names no number, as TorchWeave has it
# The originals' names of vLLM's fields.
_OTHER_NAMES = MappingProxyType(
    {"prompts": "prompt", "max_new_tokens": "max_tokens", "max_length": "max_tokens", "model_id": "model"}
)
_LINE_END = re.compile("\r\n|\r|\n")
_MOST_WAITING = 64  # for the turn of the baseline


class GenerateBody(CompletionRequest):
    """A body of `/v1/completions`, some of whose fields may have the originals' names."""

    max_tokens: int | None = _MAX_TOKENS
    prompts: list[str] | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    model_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def with_openai_s_names(cls, data: Any) -> Any:
        """Fills the fields that vLLM reads. Errors: InvalidRequest when two names of one field differ."""
        return _renamed(data) if isinstance(data, dict) else data


class ChatBody(ChatCompletionRequest):
    """A body of `/v1/chat/completions`. prompt: the message of the user, if there are no messages."""

    max_tokens: int | None = _MAX_TOKENS
    prompt: str | None = None
    max_new_tokens: int | None = None
    model_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def with_openai_s_names(cls, data: Any) -> Any:
        """Fills the fields that vLLM reads. Errors: InvalidRequest when two names of one field differ."""
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("prompt"), str) and data.get("messages") is None:
            data = {**data, "messages": [{"role": "user", "content": data["prompt"]}]}
        return _renamed(data)


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    renamed = dict(fields)
    for theirs, ours in _OTHER_NAMES.items():
        if (value := fields.get(theirs)) is None:
            continue
        if renamed.get(ours) not in (None, value):
            raise InvalidRequest(f"{theirs} and {ours} are one field here: send one of them", field=theirs)
        renamed[ours] = value
    return renamed


Body = GenerateBody | ChatBody


def _of_one(body: Body) -> Body:
    """Errors: InvalidRequest for a body that asks for several answers."""
    prompts = body.prompt if isinstance(body, GenerateBody) else None
    several = isinstance(prompts, list) and len(prompts) > 1 and not isinstance(prompts[0], int)
    if several or body.n not in (None, 1):
        raise InvalidRequest("this route gives one answer", field="prompt" if several else "n")
    return body


async def _answer(body: Body, raw: Request) -> Response:
    route = create_chat_completion if isinstance(body, ChatBody) else create_completion
    answer: Response = await route(body, raw)
    return answer


async def _whole(body: Body, raw: Request, shape: Callable[[Sequence[str]], dict[str, Any]]) -> Response:
    """shape: makes the answer of the texts. Returns vLLM's own answer when that is an error."""
    body.stream = False
    answer = await _answer(body, raw)
    if not isinstance(answer, JSONResponse) or answer.status_code != 200:
        return answer
    return JSONResponse(shape([_text_of(choice) for choice in json.loads(bytes(answer.body))["choices"]]))


class _AnswerPart(NamedTuple):
    """A part of a streamed answer. id: that of the answer. choice: its number. error: what ends the
    stream instead, as vLLM describes it."""

    id: str = ""
    choice: int = 0
    text: str = ""
    error: dict[str, Any] | None = None


async def _streamed(
    body: Body,
    raw: Request,
    frames: Callable[[AsyncIterator[_AnswerPart], float], AsyncIterator[str]],
    media_type: str = "text/event-stream",
) -> Response:
    """frames: makes the parts of the body; it is told when the request began. Errors are as in `_whole`."""
    body.stream, began = True, time.monotonic()
    answer = await _answer(body, raw)
    if not isinstance(answer, StreamingResponse):
        return answer
    return StreamingResponse(frames(_parts(answer.body_iterator), began), media_type=media_type)


async def _parts(events: AsyncIterable[Any]) -> AsyncIterator[_AnswerPart]:
    async for event in events:
        if not event.startswith("data: {"):  # a comment, or the end
            continue
        content = json.loads(event.removeprefix("data: "))
        if "error" in content:
            yield _AnswerPart(error=content["error"])
            return
        for choice in content["choices"]:
            if text := _text_of(choice):
                yield _AnswerPart(content["id"], choice["index"], text)


def _text_of(choice: dict[str, Any]) -> str:
    """Returns the text of a choice of a completion, a chat, or an event of a chat."""
    holder = choice.get("message") or choice.get("delta") or {}
    return choice.get("text") or holder.get("content") or ""


async def _timed_events(parts: AsyncIterator[_AnswerPart], began: float) -> AsyncIterator[str]:
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


async def _token_events(parts: AsyncIterator[_AnswerPart], began: float) -> AsyncIterator[str]:
    """Yields events as the server of ch03 sends them."""
    async for part in parts:
        shown = {"token": part.text, "sequence_id": part.id} if part.error is None else {"error": part.error}
        yield _event(json.dumps(shown))


async def _growing_texts(parts: AsyncIterator[_AnswerPart], began: float) -> AsyncIterator[str]:
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


class BaselineTurn:
    """Lets the requests of `/v1/generate_nobatch` run one after another. limit_seconds: what a request may
    take, its wait included."""

    def __init__(self, limit_seconds: Callable[[], float]) -> None:
        self._limit_seconds, self._turn, self._waiting = limit_seconds, asyncio.Lock(), 0

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Waits until no other request has the turn. Errors: QueueFull, DeadlineExceeded."""
        if self._waiting >= _MOST_WAITING:
            raise QueueFull(f"{self._waiting} requests wait for this route, which runs one at a time")
        began, limit = time.monotonic(), self._limit_seconds()
        self._waiting += 1
        try:
            async with asyncio.timeout(limit):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"the request had no turn within {limit:g} s") from None
        finally:
            self._waiting -= 1
        try:
            current_scope().waited_seconds += time.monotonic() - began
            yield
        finally:
            self._turn.release()


def serves_original_routes(manifest: Manifest) -> bool:
    """Returns whether the manifest asks for these routes. Without a word about them, only a local cluster has
    them."""
    wanted = manifest.api.original_routes
    return manifest.deployment.mode == "local" if wanted is None else wanted


def add_original_routes(
    app: FastAPI, engine: EngineConfig, baseline: BaselineTurn, doors: ModelDoors
) -> None:
    """engine: what `/model` shows. baseline: that of all models."""
    router = APIRouter(tags=["original projects"])
    _add_texts(router, baseline)
    _add_streams(router)
    _add_descriptions(router, engine, doors)
    app.routes.extend(router.routes)  # include_router would make each of them once more


def _add_texts(router: APIRouter, baseline: BaselineTurn) -> None:
    @router.post("/generate")
    async def generate(body: GenerateBody, raw: Request) -> Response:
        """Answers `prompts` or `prompt`; each text begins with its prompt. A stream has lines of JSON."""
        body.echo = True
        if body.prompts is not None:
            return await _whole(body, raw, lambda texts: {"generated_texts": texts})
        if body.stream:
            return await _streamed(body, raw, _growing_texts, "application/x-ndjson")
        return await _whole(body, raw, lambda texts: {"text": texts})

    @router.post("/basic_generate")
    async def basic_generate(body: GenerateBody, raw: Request) -> Response:
        """Answers one prompt, with which the text begins."""
        body.echo = True
        return await _whole(_of_one(body), raw, lambda texts: {"generated_text": texts[0]})

    @router.post("/generate_vllm")
    async def generate_vllm(body: GenerateBody, raw: Request) -> Response:
        """Answers several prompts, without repeating them."""
        return await _whole(body, raw, lambda texts: {"generated_texts": texts})

    @router.post("/v1/generate_nobatch")
    async def generate_nobatch(body: GenerateBody, raw: Request) -> Response:
        """Answers one prompt at a time, as the baseline of batching. Requests of other routes may share its
        steps, so it is one while there are none."""
        async with baseline.taken():
            return await _whole(_of_one(body), raw, lambda texts: {"text": texts[0]})

    @router.post("/v1/chat")
    async def chat(body: ChatBody, raw: Request) -> Response:
        """Answers a conversation, or a prompt as its only message. A stream is that of `/v1/generate`."""
        if body.stream:
            return await _streamed(_of_one(body), raw, _timed_events)
        return await _whole(_of_one(body), raw, lambda texts: {"text": texts[0]})


def _add_streams(router: APIRouter) -> None:
    @router.post("/stream")
    @router.post("/v1/generate")
    @router.post("/v1/generate/stream")
    async def stream(body: GenerateBody, raw: Request) -> Response:
        """Streams `event: ttft` with the seconds until the first token, the texts, and `event: done`."""
        return await _streamed(_of_one(body), raw, _timed_events)

    @router.post("/generate_stream")
    async def generate_stream(body: GenerateBody, raw: Request) -> Response:
        """Streams `{"token": TEXT, "sequence_id": ID}`."""
        return await _streamed(_of_one(body), raw, _token_events)


def _add_descriptions(router: APIRouter, engine: EngineConfig, doors: ModelDoors) -> None:
    @router.get("/model")
    async def model(raw: Request) -> dict[str, Any]:
        """Describes the model as TorchWeave does. eos: null if the tokenizer does not name its text, as
        vLLM's own of Mistral's models. device: `engine.device`."""
        client = raw.app.state.engine_client
        return {
            "vocab_size": client.model_config.get_vocab_size(),
            "eos": getattr(client.renderer.tokenizer, "eos_token", None),
            "device": engine.device,
            "max_batch_size": engine.max_decode_concurrency,
        }

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """Describes the system as TorchWeave's model manager does."""
        ready = [not await door.missing() for door in doors.visible()]
        models = {"total": len(ready), "available": sum(ready), "loading": 0, "error": 0}
        system = {"healthy": all(ready), "timestamp": datetime.now(UTC).isoformat()}
        return {
            "success": True,
            "message": "System status retrieved",
            "data": {"system": system, "models": models},
        }


class TorchWeaveModel(BaseModel):
    """A model as TorchWeave names it. custom_model_id: another word for model_id."""

    model_id: str | None = Field(None, min_length=1)
    custom_model_id: str | None = Field(None, min_length=1)

    @property
    def name(self) -> str:
        """Errors: InvalidRequest."""
        name = self.model_id or self.custom_model_id
        if not name:
            raise InvalidRequest("model_id or custom_model_id is required", field="model_id")
        return name


def add_original_models(
    app: FastAPI, client: ModelClient, limit_seconds: Callable[[], float], device: str
) -> None:
    """device: `engine.device`, which the answers show."""

    @app.post("/models/load", tags=["original projects"])
    async def load(body: TorchWeaveModel) -> dict[str, Any]:
        """Loads a model of the hub, as TorchWeave does. Clients name it by its id."""
        began, name = time.monotonic(), body.name
        await client.load(json.dumps({"source": name, "name": name}), limit_seconds())
        return {
            **_done(name, "loaded"),
            "load_time": time.monotonic() - began,
            "device": device,
        }

    @app.post("/models/unload", tags=["original projects"])
    async def unload(body: TorchWeaveModel) -> dict[str, Any]:
        """Unloads a model, and answers when no process of it is left."""
        await client.unload(body.name, limit_seconds())
        return _done(body.name, "unloaded")

    @app.get("/models/search/{text:path}", tags=["original projects"])
    async def search(text: str, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> dict[str, Any]:
        """Looks for models on the hub, if it can be reached, and on the machine of this apiserver."""
        return await asyncio.to_thread(_found, text, limit)


def _found(text: str, limit: int) -> dict[str, Any]:
    """Blocks while the hub answers."""
    here = {one.name for one in local_models(default_cache_dir()) if text.lower() in one.name.lower()}
    message, downloads = "", dict[str, int]()
    try:
        downloads = {one.name: one.downloads for one in search_hub(text, limit)}
    except Unavailable as error:
        message = f"; {error.message}"
    names = [*sorted(here), *(name for name in downloads if name not in here)]
    rows = [{"model_id": name, "downloads": downloads.get(name), "local": name in here} for name in names]
    return {"success": True, "message": f"Models found: {len(rows)}{message}", "data": rows}


def _done(name: str, what: str) -> dict[str, Any]:
    message = f"Model {name} {what} successfully"
    return {"success": True, "message": message, "model_id": name, "status_code": 200}
