"""What a command is."""

import argparse
from dataclasses import dataclass
from typing import Protocol

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_WRONG_USE = 2  # as argparse: the user must change something and try again


class Configure(Protocol):
    def __call__(self, parser: argparse.ArgumentParser) -> None: ...


class Run(Protocol):
    """Returns the exit code. Errors: LLMServeError, shown by its message."""

    def __call__(self, options: argparse.Namespace) -> int: ...


@dataclass(frozen=True, slots=True)
class Command:
    """summary: its line in `llmserve --help`. about: the text of its own --help."""

    name: str
    summary: str
    about: str
    configure: Configure
    run: Run


def add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", metavar="FILE", default="llmserve.yaml", help="the manifest (default: %(default)s)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
