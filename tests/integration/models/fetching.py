"""One process that fetches an adapter, for tests: `python fetching.py DISK MEMORY SOURCE [DIGEST]`.

What happens is a line on stdout. Before it checks what it has copied, and after it has brought the adapter to
memory, it waits for a line on stdin. It holds the adapter until it ends.
"""

import os
import sys

from llmserve.config.adapter_source import parse_adapter_source
from llmserve.config.schema import Manifest
from llmserve.core.adapters import LoraShape
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters import open_adapter_cache
from llmserve.models.adapters.cache import DISK_VARIABLE, DRAM_VARIABLE

MANIFEST = Manifest.model_validate({"kind": "LLMServe", "models": {"primary": {"source": "hub:org/name"}}})


def progress(text: str) -> None:
    print(text, flush=True)
    if text.startswith("checking"):
        sys.stdin.readline()


def main(disk: str, memory: str, source: str, digest: str = "") -> None:
    os.environ |= {DISK_VARIABLE: disk, DRAM_VARIABLE: memory}
    adapters = open_adapter_cache(MANIFEST, LoraShape(4, 16), None)
    found = adapters.fetch(parse_adapter_source(source), AdapterDigest(digest), progress)
    adapters.bring_to_dram(found.digest)
    print(f"done: {found.digest}", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
