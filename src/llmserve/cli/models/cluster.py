"""The actions about models of a running cluster: served, load, unload."""

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from llmserve.cli.cluster import add_cluster_or_router, find_cluster, find_routers
from llmserve.cli.command import EXIT_OK, Actions, Run, add_json, add_timeout
from llmserve.cli.screen import screen
from llmserve.config.load import load_manifest
from llmserve.config.wanted_models import entry_of
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.model_calls import ModelClient, OnStatus, model_row

_WAIT_SECONDS = 4 * 3600.0

Ask = Callable[[argparse.Namespace, ModelClient], Coroutine[None, None, int]]


def add_cluster_actions(actions: Actions[Run]) -> None:
    _action(actions, "served", _served, "list the cluster's models, and how far those are that come or go")
    load = _action(actions, "load", _load, "load a model, and wait until requests may use it")
    load.add_argument(
        "model", metavar="MODEL", help="its source (hub:ORG/NAME, dir:/PATH, …), or a name in the manifest"
    )
    load.add_argument("--name", help="that for clients (default: the end of its source)")
    load.add_argument(
        "--swap", metavar="NAME", default="", help="the model whose place it gets, and who leaves"
    )
    load.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of an entry of `models`, such as engine.max_model_len=4096 or replicas.decode=1",
    )
    _add_wait(load)
    unload = _action(actions, "unload", _unload, "let a model's requests end, and stop its engines")
    unload.add_argument("model", metavar="NAME", help="of the model, as clients use it")
    _add_wait(unload)


def _action(actions: Actions[Run], name: str, ask: Ask, about: str) -> argparse.ArgumentParser:
    def run(options: argparse.Namespace) -> int:
        return asyncio.run(ask(options, ModelClient(find_routers(options))))

    one = actions.add(name, run, about)
    add_cluster_or_router(one)
    add_json(one)
    return one


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    add_timeout(parser, _WAIT_SECONDS)


# -- actions


async def _served(options: argparse.Namespace, router: ModelClient) -> int:
    rows = [model_row(status) for status in await router.list()]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        screen().print(models_table(rows))
    return EXIT_OK


def models_table(rows: list[dict[str, Any]]) -> Table:
    """rows: as of model_row."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("model", "state", "requests", "source", ""):
        table.add_column(title)
    for row in rows:
        said = row["error"] or row["detail"] or ""
        table.add_row(row["name"], row["state"], str(row["requests"]), row["source"], said)
    return table


async def _load(options: argparse.Namespace, router: ModelClient) -> int:
    entry = _entry(options)
    with Console(stderr=True).status(f"{options.model} ...") as shown:
        status = await router.load(
            entry, _seconds(options), swap=options.swap, on_status=_showing(shown.update)
        )
    done = f"{status.name} is being loaded" if options.no_wait else f"{status.name} answers"
    return _show(options, status, done)


async def _unload(options: argparse.Namespace, router: ModelClient) -> int:
    with Console(stderr=True).status(f"{options.model} ...") as shown:
        status = await router.unload(options.model, _seconds(options), on_status=_showing(shown.update))
    left = "its requests end" if options.no_wait else "no process of it is left"
    return _show(options, status, f"{status.name} is unloaded: {left}")


def _seconds(options: argparse.Namespace) -> float:
    return 0.0 if options.no_wait else float(options.timeout)


def _showing(show: Callable[[str], None]) -> OnStatus:
    return lambda status: show(f"{status.name}: {status.state}  {status.detail}")


def _show(options: argparse.Namespace, status: router_pb2.ModelStatus, text: str) -> int:
    print(json.dumps(model_row(status), indent=2) if options.json else text)
    return EXIT_OK


def _entry(options: argparse.Namespace) -> str:
    """Returns the entry of the model that is meant, as JSON. A name in the manifest means that model."""
    fields = json.loads(_of_manifest(options) or json.dumps({"source": options.model}))
    if options.name:
        fields["name"] = options.name
    for text in options.set:
        try:
            _set(fields, text)
        except ValueError as error:
            raise InvalidRequest(f"--set {text}: {error}") from error
    return json.dumps(fields)


def _set(fields: dict[str, Any], text: str) -> None:
    """text: KEY=VALUE. Errors: ValueError."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError("has to be KEY=VALUE")
    _put(fields, key.split("."), _value(value))


def _value(text: str) -> Any:
    """Errors: ValueError for what is not YAML, or would be no JSON."""
    try:
        value = yaml.safe_load(text)
        json.dumps(value)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    except TypeError as error:
        raise ValueError("no JSON value: put text in quotes") from error
    return value


def _of_manifest(options: argparse.Namespace) -> str:
    """Returns the entry of the manifest that has this name; empty: there is none."""
    if options.router and not options.file:
        return ""
    try:
        manifest = load_manifest(options.file or find_cluster(options).state.manifest)
        return entry_of(manifest.entry(options.model))
    except LLMServeError:
        return ""


def _put(fields: dict[str, Any], path: list[str], value: Any) -> None:
    """Errors: ValueError when a part of the path has a value already."""
    for depth, key in enumerate(path[:-1], 1):
        fields = fields.setdefault(key, {})
        if not isinstance(fields, dict):
            raise ValueError(f"{'.'.join(path[:depth])} is no section")
    fields[path[-1]] = value
