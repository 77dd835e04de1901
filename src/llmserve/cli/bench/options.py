"""The options of `llmserve bench`. As this is built for every command, it imports nothing that takes time."""

import argparse
from typing import Any

from llmserve.cli.command import add_json, add_manifest, count, not_negative, positive, share, whole
from llmserve.core.json_object import json_object
from llmserve.loadgen.workload import SIZES

AGGREGATED, DISAGGREGATED = "agg", "disagg"
KEY_VARIABLE = "LLMSERVE_API_KEY"
SECONDS = 60.0
"""How long a load of a mix begins conversations, if nothing is said."""


def add_bench(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="of the endpoint, with or without /v1")
    where.add_argument("-f", "--file", metavar="FILE", help="the manifest that a cluster was started with")
    where.add_argument("--run-dir", metavar="DIR", help="its run directory")
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        help="with --url: believe the server with this certificate (PEM), whoever has signed it",
    )
    _add_load(parser)
    _add_adapters(parser.add_argument_group("which adapters to ask for"))
    _add_slo(parser)
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=W", help="of tenants, for fairness")
    _add_output(parser)
    parser.add_argument(
        "--run-file",
        metavar="FILE",
        help="keep the run in this file while it goes on and afterwards (default: one in the run directory "
        "of the cluster, from where the console shows it; with --url: none)",
    )


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", choices=(AGGREGATED, DISAGGREGATED), help="what the other is compared with")
    add_manifest(parser)
    _add_load(parser)
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="starts of each (default: 3)")
    parser.add_argument(
        "--ready-timeout", type=positive, default=600.0, metavar="S", help="of a start (default: 600)"
    )
    _add_slo(parser)
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--html", metavar="FILE", help="write a page with plots")


def _add_slo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slo", default="", metavar="ttft=S,itl=S,e2e=S", help="what a good request meets")


def _add_load(parser: argparse.ArgumentParser) -> None:
    _add_what(parser.add_argument_group("what to send"))
    _add_when(parser.add_argument_group("when to send it"))
    _add_how(parser.add_argument_group("how to send it"))


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mix",
        nargs="+",
        default=["short:70", "chat:30"],
        metavar="KIND:PART",
        help=f"kinds, parts: {', '.join(SIZES)}, or NAME=PROMPT/OUTPUT in tokens, as long=4000/100:30 "
        "(default: short:70 chat:30)",
    )
    group.add_argument("--spread", type=share, default=0.0, metavar="SHARE", help="sizes differ by so much")
    group.add_argument(
        "--turns", type=count, default=1, metavar="N", help="of each conversation (default: 1)"
    )
    group.add_argument("--shared-prefix", type=whole, default=0, metavar="TOKENS", help="prompts begin alike")
    group.add_argument(
        "--prefixes", type=count, default=1, metavar="N", help="so many different ones (default: 1)"
    )
    group.add_argument("--trace", metavar="FILE", help="Mooncake .jsonl, Azure or BurstGPT .csv, not the mix")
    group.add_argument(
        "--tenants",
        nargs="+",
        default=[],
        metavar="NAME:PART=KEY",
        help="@VARIABLE: a key in the environment",
    )


def _add_adapters(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="NAME",
        help="LoRA adapters, the most wanted first; or a number: so many of those that the endpoint lists",
    )
    group.add_argument(
        "--zipf",
        type=not_negative,
        default=1.0,
        metavar="S",
        help="the one of rank r is wanted in proportion to 1 / r**S (default: 1; 0: all alike)",
    )


def _add_when(group: argparse._ArgumentGroup) -> None:
    loop = group.add_mutually_exclusive_group()
    loop.add_argument(
        "--rate",
        type=positive,
        metavar="R",
        help="open loop: conversations per second, whatever is answered",
    )
    loop.add_argument(
        "--concurrency", type=count, default=8, metavar="N", help="closed loop: users (default: 8)"
    )
    group.add_argument(
        "--burstiness",
        type=not_negative,
        default=1.0,
        metavar="CV",
        help="of the open loop: 0 constant, 1 Poisson (default), more: bursts",
    )
    group.add_argument("--speed", type=positive, default=1.0, help="play the trace so many times as fast")
    group.add_argument("--think", type=not_negative, default=0.0, metavar="S", help="before the next turn")
    group.add_argument("--requests", type=count, metavar="N", help="conversations at most")
    group.add_argument(
        "--seconds",
        type=positive,
        metavar="S",
        help=f"none begins later (default: {SECONDS:g}, or --requests)",
    )
    group.add_argument("--seed", type=int, help="the same seed, the same load (default: another each time)")


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", help="default: the first that the endpoint lists, or the manifest")
    group.add_argument(
        "--api-key", metavar="KEY", help=f"@VARIABLE: in the environment (default: @{KEY_VARIABLE}, if set)"
    )
    group.add_argument(
        "--prompts",
        choices=["auto", "tokens", "text", "chat"],
        default="auto",
        help="exact token ids, or text; chat has its own URL",
    )
    group.add_argument(
        "--token-ids", type=_id_range, default=(1000, 30_000), metavar="FROM-TO", help="default: 1000-30000"
    )
    group.add_argument(
        "--extra-body",
        type=_object,
        default={},
        metavar="JSON",
        help='further fields of requests; null leaves one out, as {"ignore_eos": null}',
    )
    group.add_argument(
        "--timeout", type=positive, default=600.0, metavar="S", help="of a request (default: 600)"
    )
    group.add_argument(
        "--warmup", type=whole, default=4, metavar="N", help="requests not counted (default: 4)"
    )


def _id_range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not (dash and low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise argparse.ArgumentTypeError(f"{text} is not FROM-TO")
    return int(low), int(high)


def _object(text: str) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
