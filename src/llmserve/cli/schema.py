"""`llmserve schema`: the manifest's JSON Schema."""

import argparse
import json

from llmserve.cli.command import EXIT_OK, Command
from llmserve.config.schema_doc import json_schema, markdown

_ABOUT = """\
Prints the JSON Schema of the manifest: an editor that reads it completes and checks llmserve.yaml. Each knob
has its unit (x-unit) and whether it is available (x-status). --docs prints docs/configuration.md instead.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--docs", action="store_true", help="as Markdown: the text of docs/configuration.md")


def _run(options: argparse.Namespace) -> int:
    print(markdown() if options.docs else json.dumps(json_schema(), indent=2))
    return EXIT_OK


COMMAND = Command("schema", "print the manifest's JSON Schema", _ABOUT, _configure, _run)
