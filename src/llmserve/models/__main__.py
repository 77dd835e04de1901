"""`python -m llmserve.models pull --manifest llmserve.yaml` prepares the models and prints their places.

It writes progress lines `LLMSERVE_PROGRESS <text>` and for each model `LLMSERVE_MODEL <json>` to stdout.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest
from llmserve.config.speculation import loaded_draft
from llmserve.core.errors import LLMServeError
from llmserve.models.convert import convert_gguf
from llmserve.models.converted import END_WITH_STDIN, PROGRESS_WORD, end_with_stdin
from llmserve.models.files import Progress
from llmserve.models.pickles import convert_pickles
from llmserve.models.resolve import resolve

MODEL_WORD = "LLMSERVE_MODEL"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llmserve.models", description="Prepares models.")
    commands = parser.add_subparsers(dest="command", required=True)
    pull = commands.add_parser(
        "pull", aliases=["fetch"], help="prepare the models of a manifest, and their drafts"
    )
    pull.add_argument("--manifest", type=Path, required=True, help="the cluster's YAML")
    pull.add_argument("--model", metavar="NAME", help="only this one, by its name for clients")
    pull.add_argument(
        "--cache-dir", type=Path, help="default: $LLMSERVE_CACHE_DIR or ~/.cache/llmserve/models"
    )
    convert = commands.add_parser(
        "convert", help="one GGUF file, or a directory with pickles, to a directory of safetensors"
    )
    convert.add_argument("source", type=Path)
    convert.add_argument("out", type=Path)
    convert.add_argument(END_WITH_STDIN, action="store_true", help="end when stdin ends")
    return parser.parse_args()


def pull(manifest: Path, only: str | None, cache_dir: Path | None) -> None:
    loaded = load_manifest(manifest)
    for spec in loaded.served if only is None else (loaded.entry(only),):
        prefix = f"{spec.served_name}: " if len(loaded.served) > 1 else ""
        _pull(loaded.alone(spec), cache_dir, partial(_report, prefix))


def _pull(manifest: Manifest, cache_dir: Path | None, progress: Progress) -> None:
    """manifest: of one model."""
    if draft := loaded_draft(manifest):
        resolve(draft, cache_dir, progress)  # each worker finds it there by itself
    model = resolve(manifest.model, cache_dir, progress)
    found = {"path": str(model.path), "name": model.name, "identity": model.identity, "source": model.source}
    print(MODEL_WORD, json.dumps(found), flush=True)


def _report(prefix: str, text: str) -> None:
    print(PROGRESS_WORD, f"{prefix}{text}", flush=True)


def main() -> int:
    flags = arguments()
    try:
        if flags.command == "convert":
            if flags.end_with_stdin:
                end_with_stdin()
            to_safetensors = convert_pickles if flags.source.is_dir() else convert_gguf
            to_safetensors(flags.source, flags.out, partial(_report, ""))
        else:
            pull(flags.manifest, flags.model, flags.cache_dir)
    except LLMServeError as error:
        print(error.message, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
