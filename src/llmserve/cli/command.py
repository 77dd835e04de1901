"""The parts of a command, and the options that several commands have."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

RunT = TypeVar("RunT")

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
    """summary: line in `llmserve --help`. about: text of the command's own --help."""

    name: str
    summary: str
    about: str
    configure: Configure
    run: Run


class Actions(Generic[RunT]):
    """The actions of a command, such as `ls` of `llmserve kv`. What runs the chosen one stands in the options
    as `action`. common: adds the options that all of them have."""

    def __init__(
        self, parser: argparse.ArgumentParser, *common: Callable[[argparse.ArgumentParser], object]
    ) -> None:
        self._parsers = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
        self._common = common

    def add(self, name: str, run: RunT, about: str) -> argparse.ArgumentParser:
        one = self._parsers.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        one.set_defaults(action=run)
        for add in self._common:
            add(one)
        return one


def add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", metavar="FILE", default="llmserve.yaml", help="the manifest (default: %(default)s)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode", choices=("local", "k8s"), help="where to run; wins over deployment.mode of the manifest"
    )
    parser.add_argument("--namespace", metavar="NAME", help="k8s: wins over deployment.k8s.namespace")
    parser.add_argument(
        "--context", metavar="NAME", help="k8s: of the kubeconfig, instead of its current one"
    )


def add_timeout(parser: argparse.ArgumentParser, seconds: float) -> None:
    """seconds: the default."""
    parser.add_argument(
        "--timeout",
        type=positive,
        default=seconds,
        metavar="SECONDS",
        help="wait for so long (default: %(default)g); the cluster goes on all the same",
    )


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value
