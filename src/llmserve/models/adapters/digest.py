"""The digest of an adapter: its identity wherever it, or KV that was computed with it, is named.

It is SHA-256 over all that changes the computation, and nothing else:

1. the line `llmserve-adapter-1`;
2. a line of JSON, keys sorted, no spaces:
   `{"scaling": {MODULE: FACTOR, …}, "tensors": [[NAME, DTYPE, SHAPE], …]}`. FACTOR is alpha / rank, or
   alpha / √rank with rsLoRA, so that configurations that say the same in other words are one adapter. Tensors
   are sorted by name;
3. the bytes of the tensors in the same order, as the file has them.

So it does not depend on the order of keys and tensors, on whitespace, on metadata, or on names of files.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.tensors import TensorPlace, pieces

_FIRST_LINE = b"llmserve-adapter-1\n"


def adapter_digest(
    weights: Path,
    tensors: Mapping[str, TensorPlace],
    scaling: Mapping[str, float],
    inspect: Callable[[TensorPlace, memoryview], None],
) -> AdapterDigest:
    """Reads the weights once. scaling: the factor of each module by its name. inspect: gets every piece, and
    may raise. Errors: InvalidRequest when the file is cut off; OSError."""
    in_order = [tensors[name] for name in sorted(tensors)]
    described = [[one.name, one.dtype, list(one.shape)] for one in in_order]
    line = json.dumps({"scaling": dict(scaling), "tensors": described}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(_FIRST_LINE + line.encode() + b"\n")
    with weights.open("rb") as file:
        for tensor in in_order:
            for piece in pieces(file, tensor):
                inspect(tensor, piece)
                digest.update(piece)
    return AdapterDigest(digest.hexdigest())
