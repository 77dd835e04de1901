"""`llmserve gen-proto`: generated gRPC code from proto/. For developers of LLMServe."""

import argparse

from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Command
from llmserve.rpc.gen_proto import generate

_ABOUT = """\
Writes src/llmserve/rpc/gen anew from proto/; needs a source checkout and the extra `dev`. --check writes
nothing and fails when the committed code does not match.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 on a difference")


def _run(options: argparse.Namespace) -> int:
    drifted = generate(check=options.check)
    for name in drifted:
        print(f"{'differs' if options.check else 'written'}: {name}")
    if options.check and drifted:
        print("rpc/gen does not match proto/: run `make proto`")
        return EXIT_FAILED
    return EXIT_OK


COMMAND = Command("gen-proto", "regenerate the gRPC code (developers)", _ABOUT, _configure, _run)
