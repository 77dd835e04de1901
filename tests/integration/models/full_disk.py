"""Fetches into a small file system that is full by the time the second adapter is written, for tests:
`python full_disk.py DIRECTORY SOURCE OTHER`, in a mount namespace of its own. It tells the outcome as JSON.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from llmserve.config.adapter_source import parse_adapter_source
from llmserve.core.adapters import AdapterTier, LoraShape
from llmserve.core.errors import Unavailable
from llmserve.models.adapters import open_adapter_cache
from llmserve.models.adapters.cache import DISK_VARIABLE, DRAM_VARIABLE
from tests.integration.models.fetching import MANIFEST

SIZE = "4m"  # an adapter is fetched only where 1 MiB stays free


def main(directory: str, source: str, other: str) -> None:
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", directory), check=True)
    disk, filler = Path(directory, "disk"), Path(directory, "filler")
    os.environ |= {DISK_VARIABLE: str(disk), DRAM_VARIABLE: str(Path(directory, "memory"))}
    adapters = open_adapter_cache(MANIFEST, LoraShape(4, 16), None)

    def fill_up(text: str) -> None:
        if text.startswith("fetching"):
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    kept, error = adapters.fetch(parse_adapter_source(source)), ""
    try:
        adapters.fetch(parse_adapter_source(other), progress=fill_up)
    except Unavailable as refusal:
        error = refusal.message
    left = [path.name for path in disk.iterdir() if not path.name.startswith((".making", ".room"))]
    held = adapters.hold(kept.digest, AdapterTier.DISK)
    filler.unlink()
    fetched = adapters.fetch(parse_adapter_source(other))
    found = {"error": error, "left": left, "kept": held.digest, "fetched": fetched.digest}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
