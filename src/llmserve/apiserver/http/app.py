"""vLLM's OpenAI application on our engine client: its arguments, the routes kept of it, and ours."""

import asyncio
import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi import HTTPException as FastApiHttpException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.elastic_ep.middleware import ScalingMiddleware
from vllm.entrypoints.serve.utils.fingerprint import build_system_fingerprint
from vllm.utils.argparse_utils import FlexibleArgumentParser

from llmserve import __version__
from llmserve.apiserver.adapters.names import ModelAdapters
from llmserve.apiserver.auth.permissions import KEPT_PATHS
from llmserve.apiserver.engine.client import GENERATE, ClusterEngineClient
from llmserve.apiserver.http.errors import (
    MISREAD,
    ApiError,
    api_error_of,
    as_serving_error,
    body_of,
    headers_of,
    report,
)
from llmserve.apiserver.http.first_error import stop_at_first_error
from llmserve.apiserver.http.handlers import ChatHandler, CompletionHandler
from llmserve.apiserver.http.hot_routes import HotRoutes
from llmserve.apiserver.http.messages import MessagesHandler
from llmserve.apiserver.http.openapi import document_errors
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.http.wrong_body import wrong_body
from llmserve.apiserver.options import ModelDirectory
from llmserve.apiserver.responses.serving import ResponsesHandler
from llmserve.apiserver.responses.store import ResponseStore
from llmserve.config.engine_options import FOR_TEXT
from llmserve.config.schema import Api, EngineConfig
from llmserve.core.errors import LLMServeError
from llmserve.core.logs import levels_kept
from llmserve.engines.vllm.environment import asking_about_the_model
from llmserve.engines.vllm.options import typed_options

# vLLM's that do nothing here but take time: a CORS for every page (ours is in headers.py), metrics that were
# registered by a stack of middleware before this one, and a wait for engines that change in number.
_IDLE_MIDDLEWARE = (CORSMiddleware, PrometheusInstrumentatorMiddleware, ScalingMiddleware)


_NO_HOST = "none.invalid"  # vLLM takes an empty list for all hosts
_ANY_METHOD = {"method": "ngram", "num_speculative_tokens": 1}  # the one that reads no other model


def serving_args(
    model: ModelDirectory,
    engine: EngineConfig,
    api: Api,
    *,
    speculates: bool = False,
    media_hosts: Sequence[str] = (),
) -> Namespace:
    """The arguments of `vllm serve`, as vLLM parses them. (Its command itself asks for the version of
    a distribution named vllm, which the CPU build is not.) speculates: engines do, and vLLM's layer is to
    refuse what they would ignore then (`min_p`, `logit_bias`). It asks only whether there is a method.
    media_hosts: those from which it may fetch; limits/media.py has refused all others before."""
    parser = make_arg_parser(FlexibleArgumentParser())
    args: Namespace = parser.parse_args(
        [
            *_options(model, engine, api, speculates),
            *("--allowed-media-domains", *(media_hosts or (_NO_HOST,))),
            *_flags(engine, api),
        ]
    )
    of_text = {name: value for name, value in typed_options(engine).items() if name in FOR_TEXT}
    vars(args).update(of_text)
    validate_parsed_serve_args(args)
    return args


def _options(model: ModelDirectory, engine: EngineConfig, api: Api, speculates: bool) -> list[str]:
    """Returns the arguments that have values. With "=", since a value may begin with a dash."""
    options: Mapping[str, Any] = {
        "--model": model.directory,
        "--served-model-name": model.name,
        "--dtype": engine.dtype,
        "--max-model-len": engine.max_model_len,
        "--tool-call-parser": engine.tool_call_parser,
        "--reasoning-parser": engine.reasoning_parser,
        "--structured-outputs-config.backend": engine.grammar_backend,
        "--max-logprobs": engine.max_logprobs,
        "--root-path": api.root_path,
        "--stream-interval": api.stream_interval,
        "--sse-keep-alive-interval": api.sse_keep_alive_seconds,
        "--chat-template": api.chat_template,
        "--runner": GENERATE if engine.task == GENERATE else "pooling",
        "--default-chat-template-kwargs": json.dumps(api.chat_template_kwargs),
        "--speculative-config": json.dumps(_ANY_METHOD) if speculates else None,
    }
    return [f"{name}={value}" for name, value in options.items() if value is not None]


def _flags(engine: EngineConfig, api: Api) -> list[str]:
    flags = {
        "--disable-log-stats": True,
        "--enable-prompt-tokens-details": True,
        "--enable-auto-tool-choice": engine.tool_call_parser is not None,
        "--enable-force-include-usage": api.force_include_usage,
        "--enable-tokenizer-info-endpoint": api.tokenizer_info,
    }
    return [name for name, on in flags.items() if on]


def vllm_config(args: Namespace) -> VllmConfig:
    """Reads the model's configuration; starts nothing."""
    with asking_about_the_model(Path(args.model)):
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()


async def openai_app(
    client: ClusterEngineClient,
    args: Namespace,
    add_own: Callable[[FastAPI], None],
    store: ResponseStore | None,
    adapters: ModelAdapters,
) -> FastAPI:
    """Returns the application of one model. add_own: adds what is not vLLM's. store: of answers of
    /v1/responses. adapters: those of the model that requests may name."""
    # In a thread: it takes most of a second, in which the streams of other models go on.
    app = await asyncio.to_thread(_vllm_app, client, args, add_own)
    app.state.openai_serving_models.lora_requests = adapters
    if client.tasks == (GENERATE,):
        _serve_answers(app.state, store)
    return app


def _vllm_app(client: ClusterEngineClient, args: Namespace, add_own: Callable[[FastAPI], None]) -> FastAPI:
    """Returns the application with the state that vLLM makes. That is async, and waits for nothing."""
    app = _routed_app(client, args, add_own)
    # _serve_answers hashes the configuration once, in place of each handler.
    unhashed = Namespace(**{**vars(args), "fingerprint_mode": "none"})
    asyncio.run(init_app_state(client, app.state, unhashed, client.tasks))
    return app


def _routed_app(client: ClusterEngineClient, args: Namespace, add_own: Callable[[FastAPI], None]) -> FastAPI:
    """Returns the application with its routes, which have no state yet."""
    with levels_kept():  # its SageMaker bootstrap sets them to ERROR
        app: FastAPI = build_app(args, client.tasks, client.model_config)
    app.title, app.version = "LLMServe", __version__
    app.router.routes[:] = _kept(app.router.routes)
    add_own(app)
    stop_at_first_error(app.router.routes)
    document_errors(app)
    app.router.redirect_slashes = False  # the gate takes them off
    # vLLM's own handler, for FastAPI's class only, loses the headers; an unknown path raises Starlette's.
    app.add_exception_handler(FastApiHttpException, _http_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(LLMServeError, _own_error)
    app.add_exception_handler(RequestValidationError, _wrong_body)
    for kind in MISREAD:
        app.add_exception_handler(kind, _misread)
    app.user_middleware[:] = [one for one in app.user_middleware if one.cls not in _IDLE_MIDDLEWARE]
    # vLLM's SageMaker bootstrap has built the stack already.
    app.middleware_stack = None
    makes_text_events = not args.sse_keep_alive_interval  # whose comments come from another task
    app.router.middleware_stack = HotRoutes(
        app.router.middleware_stack, app.router.routes, text_events=makes_text_events
    )
    return app


def _serve_answers(state: State, store: ResponseStore | None) -> None:
    """Puts our handlers in place of vLLM's. vLLM would also choose an adapter by itself, for a chat whose
    content is of a type (`text`, `image`) that is an adapter's name."""
    state.openai_serving_chat = _as(ChatHandler, state.openai_serving_chat)
    state.openai_serving_completion = _as(CompletionHandler, state.openai_serving_completion)
    state.anthropic_serving_messages = _as(MessagesHandler, state.anthropic_serving_messages)
    state.openai_serving_responses = _as(ResponsesHandler, state.openai_serving_responses)
    state.openai_serving_responses.keep_in(store)
    chat, batch = state.openai_serving_chat, state.openai_serving_chat_batch
    fingerprint = build_system_fingerprint(state.vllm_config)
    for shows_it in (chat, batch, state.openai_serving_completion):
        shows_it.system_fingerprint = fingerprint
    for chats in (chat, batch, state.anthropic_serving_messages):
        chats._get_active_default_mm_loras = lambda request: None


def _as(ours: type[Any], made: Any) -> Any:
    """Returns vLLM's handler as one of our subclass. (init_app_state makes all, of its own classes.)"""
    handler = object.__new__(ours)
    handler.__dict__.update(made.__dict__)
    return handler


async def _own_error(_: Request, error: Exception) -> Response:
    problem = api_error_of(error)
    headers = {name.decode(): value.decode() for name, value in headers_of(error)}
    return JSONResponse(body_of(problem), problem.status, headers)


async def _wrong_body(_: Request, error: Exception) -> Response:
    """Answers in place of vLLM's handler, which shows what pydantic knows of an error as Python writes it."""
    assert isinstance(error, RequestValidationError)
    problem = wrong_body(error)
    return JSONResponse(body_of(problem), problem.status)


async def _misread(_: Request, error: Exception) -> Response:
    """Answers these here, since vLLM's handler of all other errors answers 500."""
    problem = api_error_of(as_serving_error(error, before_engine=not current_scope().reached_engine))
    report(problem, error)
    return JSONResponse(body_of(problem), problem.status)


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or method that is not there, or what vLLM raises in its routes."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    message = error.detail
    match error.status_code:
        case 404 if message == HTTPStatus.NOT_FOUND.phrase:
            message = f"there is nothing at {request.url.path}"
        case 405:
            headers["allow"] = _allowed(request)
            message = f"{request.method} is not for {request.url.path}, which takes {headers['allow']}"
    return JSONResponse(body_of(ApiError(error.status_code, message)), error.status_code, headers)


def _allowed(request: Request) -> str:
    """The methods of all routes of a path. With HEAD, which the gate answers as GET."""
    here = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in here for method in route.methods}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _kept(routes: Iterable[Any]) -> list[Any]:
    """Keeps each route once: all applications of a process share the routers of vLLM that they add to."""
    kept = [route for route in routes if getattr(route, "path", None) in KEPT_PATHS]
    return list({(route.path, frozenset(route.methods)): route for route in kept}.values())
