"""One process that prepares a model, for tests: `python preparing.py CACHE SOURCE` with a converter that
waits in its middle for a line on stdin, `python preparing.py --real SOURCE OUT` with the real one.

What happens is a line on stdout: the progress, and at the end the directory or the error.
"""

import sys
from pathlib import Path

from llmserve.core.errors import LLMServeError
from llmserve.models.converted import ConvertedModels, convert_in_process
from llmserve.models.files import DigestCache, Progress


def say(text: str) -> None:
    print(text, flush=True)


def convert(source: Path, out: Path, progress: Progress) -> None:
    (out / "model.safetensors").write_bytes(source.read_bytes()[:4])
    progress("half of it is written")
    sys.stdin.readline()
    (out / "model.safetensors").write_bytes(source.read_bytes())


def main(arguments: list[str]) -> None:
    if arguments[0] == "--real":
        try:
            convert_in_process(Path(arguments[1]), Path(arguments[2]), say)
        except LLMServeError as error:
            say(f"error: {error.message}")
        return
    cache, source = Path(arguments[0]), Path(arguments[1])
    digests = DigestCache(cache / "digests.json")
    say(f"done: {ConvertedModels(cache, digests, convert, version=1).get(source, say)}")


if __name__ == "__main__":
    main(sys.argv[1:])
