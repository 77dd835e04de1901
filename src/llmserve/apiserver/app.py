"""vLLM's OpenAI application on our engine client: its arguments, the routes kept of it, and ours."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.exception_handling.handlers.http import http_exception_handler
from vllm.utils.argparse_utils import FlexibleArgumentParser

from llmserve.apiserver.cluster_client import SUPPORTED_TASKS, ClusterEngineClient
from llmserve.apiserver.health import Readiness
from llmserve.apiserver.options import ServedModel
from llmserve.config.schema import EngineConfig
from llmserve.core.logs import levels_kept

# All that a client of the cluster may use. What vLLM adds later stays shut until it is listed here.
_KEPT_PATHS = frozenset(
    {
        "/openapi.json",
        "/docs",
        "/docs/oauth2-redirect",
        "/version",
        "/tokenize",
        "/detokenize",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/messages",
        "/v1/messages/count_tokens",
    }
)


def serving_args(model: ServedModel, engine: EngineConfig) -> Namespace:
    """The arguments of `vllm serve`, as vLLM parses them. (Its command itself asks for the version of
    a distribution named vllm, which the CPU build is not.)"""
    options: Mapping[str, Any] = {
        "--model": model.directory,
        "--served-model-name": model.name,
        "--dtype": engine.dtype,
        "--max-model-len": engine.max_model_len,
        "--tool-call-parser": engine.tool_call_parser,
        "--reasoning-parser": engine.reasoning_parser,
        "--structured-outputs-config.backend": engine.grammar_backend,
    }
    flags = ["--disable-log-stats", "--enable-prompt-tokens-details"]
    if engine.tool_call_parser:
        flags.append("--enable-auto-tool-choice")
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([*given, *flags])
    validate_parsed_serve_args(args)
    return args


def vllm_config(args: Namespace) -> VllmConfig:
    """Reads the model's configuration; starts nothing."""
    return AsyncEngineArgs.from_cli_args(args).create_engine_config()


async def openai_app(
    client: ClusterEngineClient,
    args: Namespace,
    readiness: Readiness,
    registry: CollectorRegistry,
    add_own: Callable[[FastAPI], None],
) -> FastAPI:
    """add_own: adds what is not vLLM's."""
    with levels_kept():  # its SageMaker bootstrap sets them to ERROR
        app: FastAPI = build_app(args, SUPPORTED_TASKS, client.model_config)
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) in _KEPT_PATHS
    ]
    _add_operations(app, readiness, registry)
    add_own(app)
    # vLLM registers its handler for FastAPI's class only; an unknown path raises Starlette's.
    app.add_exception_handler(HTTPException, http_exception_handler)
    # vLLM's SageMaker bootstrap has built the stack already.
    app.middleware_stack = None
    await init_app_state(client, app.state, args, SUPPORTED_TASKS)
    return app


def _add_operations(app: FastAPI, readiness: Readiness, registry: CollectorRegistry) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 when requests can be served; 503 and the reason when they cannot."""
        if reason := readiness.missing():
            body = {"status": "unavailable", "reason": reason}
            return JSONResponse(body, 503, headers={"Retry-After": "1"})
        return JSONResponse({"status": "ok"})

    @app.get("/live")
    async def live() -> Response:
        """200 as long as this process answers, whatever the rest of the cluster does."""
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
