"""`llmserve simulate`: how a cluster would serve a load, without starting anything."""

import argparse
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

from llmserve.cli.command import EXIT_OK, Command, add_json, add_manifest
from llmserve.cli.numbers import count, positive
from llmserve.cli.simulate_page import show, watched
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.simulate.mix import RequestMix, parse_kind, parse_part, tenant_drawer
from llmserve.simulate.plot import shares_svg
from llmserve.simulate.report import Goals
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces.read import at_speed, read_trace
from llmserve.traces.request import TracedRequest

_ABOUT = """\
Runs a load against the manifest's cluster in virtual time, with the router's own code and simulated engines:
how long would requests wait, who gets which share, how busy is each worker? Nothing is started.

  llmserve simulate -f examples/sim.yaml --mix long:30 short:70 --rate 40 --seconds 120
  llmserve simulate -f examples/sim.yaml --trace mooncake.jsonl --decode 12 --slo ttft=1,itl=0.03

Traces: JSON lines as Mooncake's (timestamp in ms, input_length, output_length, hash_ids), or CSV as Azure's
(TIMESTAMP, ContextTokens, GeneratedTokens). Engines are as fast as engine.sim says, or as the options say.
"""
_SLO = {"ttft": "first_token_seconds", "itl": "gap_seconds", "e2e": "total_seconds"}


def _run(options: argparse.Namespace) -> int:
    shape = ClusterShape.of(load_manifest(Path(options.file)), _overrides(options))
    goals = _goals(options.slo)
    requests = _requests(options)
    simulation = Simulation(shape, requests, seed=options.seed)
    with watched() as progress:
        simulation.run(progress)
    report = simulation.report(goals)
    if options.plot:
        _plot(simulation, requests, Path(options.plot))
    if options.json:
        json.dump(asdict(report), sys.stdout, indent=2)
        print()
    else:
        show(report, goals)
    return EXIT_OK


def _configure(parser: argparse.ArgumentParser) -> None:
    add_manifest(parser)
    add_json(parser)
    _configure_load(parser.add_argument_group("the load"))
    _configure_cluster(parser.add_argument_group("in place of what the manifest says"))
    parser.add_argument("--slo", default="", metavar="ttft=S,itl=S,e2e=S", help="what a good request meets")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same result (default: 0)")
    parser.add_argument("--plot", metavar="FILE.svg", help="write the tenants' shares over time")


def _configure_load(load: argparse._ArgumentGroup) -> None:
    load.add_argument("--trace", metavar="FILE", help="requests of a file")
    load.add_argument("--speed", type=positive, default=1.0, help="play the trace so many times as fast")
    load.add_argument(
        "--mix",
        nargs="+",
        default=["short:70", "long:30"],
        metavar="KIND:PART",
        help="short, chat, long or PROMPT/OUTPUT in tokens (default: short:70 long:30)",
    )
    load.add_argument("--rate", type=positive, default=10.0, help="requests per second (default: 10)")
    load.add_argument("--seconds", type=positive, default=60.0, help="of the mix (default: 60)")
    load.add_argument(
        "--shared-prefix",
        type=count,
        default=0,
        metavar="TOKENS",
        help="all prompts of a tenant begin alike",
    )
    load.add_argument("--tenants", nargs="+", default=[], metavar="NAME=PART", help="who sends how much")


def _configure_cluster(cluster: argparse._ArgumentGroup) -> None:
    cluster.add_argument("--prefill", type=count, metavar="N", help="prefill workers")
    cluster.add_argument("--decode", type=count, metavar="N", help="decode workers")
    cluster.add_argument("--weights", nargs="+", default=[], metavar="NAME=WEIGHT", help="of tenants")
    cluster.add_argument("--prefill-tokens-per-second", type=positive, metavar="N", help="as measured")
    cluster.add_argument("--decode-step-seconds", type=positive, metavar="S", help="as measured")
    cluster.add_argument("--decode-seconds-per-sequence", type=positive, metavar="S", help="as measured")
    cluster.add_argument("--kv-blocks", type=count, metavar="N", help="of one engine")
    cluster.add_argument(
        "--kv-bytes-per-token", type=positive, default=0.0, metavar="N", help="of all layers"
    )
    cluster.add_argument(
        "--transfer-gbps",
        type=positive,
        default=0.0,
        metavar="N",
        help="between two engines; default: no time",
    )


def _overrides(options: argparse.Namespace) -> Overrides:
    return Overrides(
        prefill_workers=options.prefill,
        decode_workers=options.decode,
        prefill_tokens_per_second=options.prefill_tokens_per_second,
        decode_step_seconds=options.decode_step_seconds,
        decode_seconds_per_sequence=options.decode_seconds_per_sequence,
        kv_blocks=options.kv_blocks,
        weights=tuple(parse_part("--weights", text) for text in options.weights),
        kv_bytes_per_token=options.kv_bytes_per_token,
        transfer_gbps=options.transfer_gbps,
    )


def _goals(text: str) -> Goals:
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, seconds = parse_part("--slo", part)
        if name not in _SLO:
            raise InvalidRequest(f"--slo {part!r}: write one of {', '.join(_SLO)}")
        given[_SLO[name]] = seconds
    return Goals(**given)


def _requests(options: argparse.Namespace) -> list[TracedRequest]:
    rng = random.Random(options.seed)
    tenants = [parse_part("--tenants", text) for text in options.tenants] or [(DEFAULT_TENANT, 1.0)]
    if options.trace:
        return at_speed(read_trace(Path(options.trace), tenant_drawer(tenants, rng)), options.speed)
    kinds = [parse_kind(text) for text in options.mix]
    return RequestMix(kinds, tenants, options.rate, options.seconds, options.shared_prefix).requests(rng)


def _plot(simulation: Simulation, requests: list[TracedRequest], path: Path) -> None:
    tenants: list[TenantId] = sorted({request.tenant for request in requests})
    seconds = max(2, int(requests[-1].arrived_at)) if requests else 2
    try:
        path.write_text(shares_svg(simulation.timeline, tenants, seconds, "share of the tokens computed"))
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error


COMMAND = Command("simulate", "how a load would be served, in virtual time", _ABOUT, _configure, _run)
