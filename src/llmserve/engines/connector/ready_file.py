"""What the front process wants to know of an engine once its KV memory exists.

The scheduler side writes it to a file that the front named; vLLM has no channel of its own for it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineReadyFile:
    layout: str
    kv_dtype: str
    computation: str
    block_size_tokens: int
    block_bytes: int
    total_blocks: int
    transports: tuple[str, ...]
    endpoints: tuple[str, ...]  # of the side channels, in rank order

    def write(self, path: Path) -> None:
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.rename(path)

    @classmethod
    def read(cls, path: Path) -> "EngineReadyFile":
        fields = json.loads(path.read_text())
        tuples = {name: tuple(fields[name]) for name in ("transports", "endpoints")}
        return cls(**{**fields, **tuples})
