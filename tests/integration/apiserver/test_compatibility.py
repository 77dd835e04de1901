"""docs/compatibility.md is about all that the installed vLLM has, and says the truth of what is here."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi import APIRouter
from pydantic import BaseModel

DOCUMENT = (Path(__file__).parents[3] / "docs" / "compatibility.md").read_text()
EVERY_SWITCH = ["--enable-scale-out", "--tokens-only", "--enable-tokenizer-info-endpoint"]
MODES = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ENABLE_COHERE_API")
# With a package that is not installed.
COHERE = {"/cohere/v2/chat", "/cohere/v2/chat/render"}


def _section(title: str) -> str:
    return re.split(r"^## ", DOCUMENT.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def _rows(title: str) -> Iterator[list[str]]:
    for line in _section(title).splitlines():
        if line.startswith("|") and "`" in line:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _routes_of_routers() -> Iterator[str]:
    """Of each router that some module of vLLM defines, whether or not an application includes it."""
    package = importlib.import_module("vllm.entrypoints")
    for module in pkgutil.walk_packages(package.__path__, "vllm.entrypoints."):
        if module.name.endswith("api_router"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, APIRouter):
                    yield from (route.path for route in value.routes)  # type: ignore[attr-defined]


def _routes_of_applications() -> Iterator[str]:
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.tasks import GENERATION_TASKS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    for switches in ([], EVERY_SWITCH, ["--enable-offline-docs"]):
        app = build_app(parser.parse_args(switches), GENERATION_TASKS, None)
        yield from (route.path for route in app.routes)


def test_every_route_of_vllm_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in MODES:
        monkeypatch.setenv(mode, "1")
    listed = [route for row in _rows("Routes") for route in _names(row[0])]
    assert len(listed) == len(set(listed))
    assert set(listed) - COHERE == {*_routes_of_routers(), *_routes_of_applications()} - COHERE


async def test_the_routes_that_are_here_are_those_that_the_page_says(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    for row in _rows("Routes"):
        for route in _names(row[0]):
            if route != "/tokenizer_info":  # test_apiserver_surface.py
                assert await _is_served(http, route) is (row[1] == "yes"), route


async def _is_served(http: httpx.AsyncClient, route: str) -> bool:
    path = re.sub(r"{\w+}", "x", route)
    methods = ("POST",) if route.endswith("/render") else ("GET", "POST")  # GET: of a response "render"
    answers = [await http.request(method, path, json={}) for method in methods]
    return any(answer.status_code != 405 and "there is nothing at" not in answer.text for answer in answers)


def test_every_flag_of_vllm_serve_is_listed_once() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    options = [option for action in parser._actions for option in action.option_strings]
    first = {o for o in options if o.startswith("--") and not o.startswith("--no-")}
    aliases = {"--device-memory-utilization"}  # of --gpu-memory-utilization
    listed = [name for row in _rows("Flags") for name in _names(row[0]) if name.startswith("--")]
    assert sorted(listed) == sorted(first - aliases)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for held in (field.annotation, *get_args(field.annotation)):
            if isinstance(held, type) and issubclass(held, BaseModel):
                yield from _fields(held, f"{prefix}{name}.")


def test_every_usage_field_of_each_api_is_listed() -> None:
    from vllm.entrypoints.anthropic.protocol import AnthropicUsage
    from vllm.entrypoints.openai.responses.protocol import ResponseUsage
    from vllm.entrypoints.serve.engine.protocol import UsageInfo

    listed: dict[str, list[str]] = {}
    api = ""
    for row in _rows("Usage fields"):
        api = row[0] or api
        listed.setdefault(api, []).extend(_names(row[1]))
    assert {api: sorted(fields) for api, fields in listed.items()} == {
        "chat and text completions": sorted(_fields(UsageInfo)),
        "responses": sorted(_fields(ResponseUsage)),
        "messages": sorted(_fields(AnthropicUsage)),
    }


def test_the_settings_that_the_page_names_exist() -> None:
    from llmserve.config.schema import Manifest
    from llmserve.config.schema.section import path_text, walk

    known = {path_text(knob.path) for knob in walk(Manifest)}
    sections = {path.partition(".")[0] for path in known}
    named = {name for name in _names(DOCUMENT) if re.fullmatch(r"[a-zA-Z_]+(\.[a-z_]+)+", name)}
    missing = {name for name in named if name.partition(".")[0] in sections} - known
    assert not missing
