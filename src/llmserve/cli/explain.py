"""`llmserve explain`: why a request was served as it was."""

import argparse
import asyncio
import json

from llmserve.cli.command import EXIT_OK, Command, add_json
from llmserve.cli.explain_page import lines
from llmserve.cli.find import add_cluster, find_cluster
from llmserve.rpc.explain import explain_request

_ABOUT = """\
Shows what the cluster that runs here (or of -f, --run-dir) remembers of a request: how long it waited, and
for what; its tenant's share; where it ran, and what else could have been; what was cached; how its KV moved,
and what failed on the way. ID is what the response has as its id (chatcmpl-...), or the header x-request-id,
which refusals have too. Each apiserver remembers its latest requests (observability.explain_requests).
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the id of the response, or x-request-id")
    add_cluster(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    routers = find_cluster(options).routers
    record = json.loads(asyncio.run(explain_request(routers, options.id)))
    print(json.dumps(record, indent=2) if options.json else "\n".join(lines(record)))
    return EXIT_OK


COMMAND = Command("explain", "why a request was served as it was", _ABOUT, _configure, _run)
