"""`llmserve bench`: puts a load on an OpenAI endpoint, and measures.

This module imports nothing that takes time: every command builds its options.
"""

import argparse

from llmserve.cli.bench.options import add_bench, add_compare
from llmserve.cli.command import Command

_ABOUT = """\
Puts a load on an OpenAI endpoint and measures it from outside: the cluster that runs here (or of -f,
--run-dir), or with --url any other server, so that rivals are measured alike.

  llmserve bench --concurrency 16 --seconds 60
  llmserve bench --url http://10.0.0.7:8000 --mix long=4000/100:30 short:70 --rate 5 --slo ttft=1,itl=0.05
  llmserve bench --trace mooncake.jsonl --speed 2 --html report.html
  llmserve bench --tenants gold=@GOLD_KEY basic=@BASIC_KEY --weights gold=4 --concurrency 64
  llmserve bench --adapters 100 --zipf 1.0 --requests 400
  llmserve bench compare agg -f llmserve.yaml --requests 100

In the open loop (--rate, --trace) requests leave at planned times however long answers take, and times count
from there. In the closed loop (--concurrency) each user waits for the answer. Ctrl-C ends the run and shows
what has ended. Prompts have exact lengths where the endpoint takes token ids; what is approximate is said.
docs/benchmarking.md explains the figures. The exit code is 1 when nothing was served.
"""


_ABOUT_COMPARE = """\
Starts the cluster of a manifest in both shapes on this machine, one after the other in alternating turns, and
sends each the same requests: agg (as many engines, each computing prompts and answers) and disagg (prefill
and decode apart). Then it says what differs, with 95% intervals: of a bootstrap over rounds and requests.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_bench(parser)
    parser.set_defaults(compares=False)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=False)
    compare = actions.add_parser(
        "compare",
        help="aggregated against disaggregated, in turns",
        description=_ABOUT_COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_compare(compare)
    compare.set_defaults(compares=True)


def _run(options: argparse.Namespace) -> int:
    from llmserve.cli.bench import compare, run  # the HTTP client and numpy: not for other commands

    return compare.run(options) if options.compares else run.run(options)


COMMAND = Command("bench", "put a load on an endpoint, and measure it", _ABOUT, _configure, _run)
