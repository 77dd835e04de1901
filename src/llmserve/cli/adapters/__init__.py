"""`llmserve adapters`: looks after the LoRA adapters of a running cluster."""

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine

from llmserve.cli.adapters.page import adapter_lines, adapters_page, showing_progress
from llmserve.cli.cluster import add_cluster_or_router, find_routers
from llmserve.cli.command import EXIT_OK, Actions, Command, add_json, add_timeout
from llmserve.cli.screen import screen
from llmserve.config.adapter_source import parse_adapter_source
from llmserve.core.adapters import AdapterTier, short_version
from llmserve.core.errors import NotFound
from llmserve.rpc.adapter_calls import AdapterClient, adapter_row
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_ABOUT = """\
Looks after the LoRA adapters of the cluster that runs here (or of -f, --run-dir, --router). A name is what
clients use; it points to a version, which is the digest of an adapter's weights and configuration.

  llmserve adapters ls                            names, versions, and where workers have them
  llmserve adapters load sql dir:/adapters/sql    give an adapter a name, or move the name to other weights
  llmserve adapters prefetch sql --tier device    bring it nearer to the engines, before the first request
  llmserve adapters pin sql                       keep it in shared memory, however long it is not used
  llmserve adapters unload sql                    take the name away; requests that run go on
  llmserve adapters show sql                      everything about one
"""
_WAIT_SECONDS = 3600.0
_TIERS = [tier.value for tier in AdapterTier if tier is not AdapterTier.SOURCE]

Run = Callable[[argparse.Namespace, AdapterClient], Coroutine[None, None, int]]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = Actions[Run](parser, add_cluster_or_router, add_json)

    def named(name: str, run: Run, about: str) -> argparse.ArgumentParser:
        one = actions.add(name, run, about)
        one.add_argument("name", metavar="NAME", help="of the adapter, as clients use it")
        return one

    actions.add("ls", _ls, "list adapters, with where workers have them")
    named("show", _show, "show the versions of an adapter, worker by worker")
    load = named("load", _load, "give an adapter a name, and wait until requests may use it")
    load.add_argument("source", metavar="SOURCE", help="dir:/PATH, hub:ORG/NAME or s3://BUCKET/PREFIX")
    load.add_argument("--pin", action="store_true", help="keep it in shared memory")
    _add_tier(load, "bring it so near to every worker at once (default: its host's disk)", default=None)
    add_timeout(load, _WAIT_SECONDS)
    unload = named("unload", _unload, "take a name away, and wait until no worker has the adapter")
    unload.add_argument("--no-wait", action="store_true", help="return at once")
    add_timeout(unload, _WAIT_SECONDS)
    prefetch = named(
        "prefetch", _prefetch, "bring an adapter nearer to every worker, and wait until it is there"
    )
    _add_tier(prefetch, "how near (default: %(default)s)", default=AdapterTier.DRAM)
    add_timeout(prefetch, _WAIT_SECONDS)
    named("pin", _pin, "keep an adapter in shared memory, however long it is not used").set_defaults(pin=True)
    named("unpin", _pin, "undo `pin`").set_defaults(pin=False)


def _add_tier(parser: argparse.ArgumentParser, help_: str, default: str | None) -> None:
    parser.add_argument("--tier", choices=_TIERS, default=default, help=help_)


def _run(options: argparse.Namespace) -> int:
    run: Run = options.action
    return asyncio.run(run(options, AdapterClient(find_routers(options))))


# -- actions


async def _ls(options: argparse.Namespace, router: AdapterClient) -> int:
    rows = [adapter_row(status) for status in await router.list()]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        screen().print(adapters_page(rows))
    return EXIT_OK


async def _show(options: argparse.Namespace, router: AdapterClient) -> int:
    rows = [adapter_row(one) for one in await router.list() if one.adapter.name == options.name]
    if not rows:
        raise NotFound(f"no adapter has the name {options.name}: see `llmserve adapters ls`")
    print(json.dumps(rows, indent=2) if options.json else "\n".join(adapter_lines(rows)))
    return EXIT_OK


async def _load(options: argparse.Namespace, router: AdapterClient) -> int:
    source = str(parse_adapter_source(options.source))
    tier = AdapterTier(options.tier) if options.tier else None
    load = router.load(options.name, source, options.timeout, pin=options.pin, tier=tier)
    status = await showing_progress(router, options.name, load)
    _say(options, status, f"{options.name} is ready: version {short_version(status.adapter.digest)}")
    return EXIT_OK


async def _unload(options: argparse.Namespace, router: AdapterClient) -> int:
    unload = router.unload(options.name, options.timeout, wait=not options.no_wait)
    status = await showing_progress(router, options.name, unload)
    rest = "requests that have it go on" if options.no_wait else "no worker has it any more"
    _say(options, status, f"{options.name} is unloaded: {rest}")
    return EXIT_OK


async def _prefetch(options: argparse.Namespace, router: AdapterClient) -> int:
    keep = router.keep(options.name, options.timeout, tier=AdapterTier(options.tier), wait=True)
    status = await showing_progress(router, options.name, keep)
    _say(options, status, f"{options.name} is in tier {options.tier}, or nearer, at every worker")
    return EXIT_OK


async def _pin(options: argparse.Namespace, router: AdapterClient) -> int:
    status = await router.keep(options.name, _WAIT_SECONDS, pin=options.pin)
    _say(options, status, f"{options.name} is {'pinned' if options.pin else 'not pinned any more'}")
    return EXIT_OK


def _say(options: argparse.Namespace, status: router_pb2.AdapterStatus, text: str) -> None:
    print(json.dumps(adapter_row(status), indent=2) if options.json else text)


COMMAND = Command("adapters", "load, unload and list LoRA adapters", _ABOUT, _configure, _run)
