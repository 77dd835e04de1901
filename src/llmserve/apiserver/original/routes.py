"""The routes of the original projects.

    original's body -> body of /v1/completions or /v1/chat/completions -> vLLM's route -> original's answer

Keys, tenants, budgets, limits and errors are those of vLLM's routes. docs/compatibility.md says from which
project each route is.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from llmserve.apiserver.models.doors import ModelDoors
from llmserve.apiserver.original.answers import growing_texts, streamed, timed_events, token_events, whole
from llmserve.apiserver.original.baseline import BaselineTurn
from llmserve.apiserver.original.bodies import ChatBody, GenerateBody, of_one
from llmserve.config.schema import EngineConfig, Manifest


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
    app.include_router(router)


def _add_texts(router: APIRouter, baseline: BaselineTurn) -> None:
    @router.post("/generate")
    async def generate(body: GenerateBody, raw: Request) -> Response:
        """Answers `prompts` or `prompt`; each text begins with its prompt. A stream has lines of JSON."""
        body.echo = True
        if body.prompts is not None:
            return await whole(body, raw, lambda texts: {"generated_texts": texts})
        if body.stream:
            return await streamed(body, raw, growing_texts, "application/x-ndjson")
        return await whole(body, raw, lambda texts: {"text": texts})

    @router.post("/basic_generate")
    async def basic_generate(body: GenerateBody, raw: Request) -> Response:
        """Answers one prompt, with which the text begins."""
        body.echo = True
        return await whole(of_one(body), raw, lambda texts: {"generated_text": texts[0]})

    @router.post("/generate_vllm")
    async def generate_vllm(body: GenerateBody, raw: Request) -> Response:
        """Answers several prompts, without repeating them."""
        return await whole(body, raw, lambda texts: {"generated_texts": texts})

    @router.post("/v1/generate_nobatch")
    async def generate_nobatch(body: GenerateBody, raw: Request) -> Response:
        """Answers one prompt at a time, as the baseline of batching. Requests of other routes may share its
        steps, so it is one while there are none."""
        async with baseline.taken():
            return await whole(of_one(body), raw, lambda texts: {"text": texts[0]})

    @router.post("/v1/chat")
    async def chat(body: ChatBody, raw: Request) -> Response:
        """Answers a conversation, or a prompt as its only message. A stream is that of `/v1/generate`."""
        if body.stream:
            return await streamed(of_one(body), raw, timed_events)
        return await whole(of_one(body), raw, lambda texts: {"text": texts[0]})


def _add_streams(router: APIRouter) -> None:
    @router.post("/stream")
    @router.post("/v1/generate")
    @router.post("/v1/generate/stream")
    async def stream(body: GenerateBody, raw: Request) -> Response:
        """Streams `event: ttft` with the seconds until the first token, the texts, and `event: done`."""
        return await streamed(of_one(body), raw, timed_events)

    @router.post("/generate_stream")
    async def generate_stream(body: GenerateBody, raw: Request) -> Response:
        """Streams `{"token": TEXT, "sequence_id": ID}`."""
        return await streamed(of_one(body), raw, token_events)


def _add_descriptions(router: APIRouter, engine: EngineConfig, doors: ModelDoors) -> None:
    @router.get("/model")
    async def model(raw: Request) -> dict[str, Any]:
        """Describes the model as TorchWeave does. device: `engine.device`."""
        client = raw.app.state.engine_client
        return {
            "vocab_size": client.model_config.get_vocab_size(),
            "eos": client.renderer.tokenizer.eos_token,
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
