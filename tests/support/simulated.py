"""Manifests of clusters of simulated engines, for tests that are not about transports."""

from pathlib import Path
from typing import Any

import yaml

_EXAMPLES = Path(__file__).parents[2] / "examples"


def simulated(example: str) -> dict[str, Any]:
    """Returns an example whose engines are simulated, and whose KV goes over shared memory and tcp only: with
    NIXL, UCX and torch, each worker takes two more seconds of CPU to start."""
    manifest: dict[str, Any] = yaml.safe_load((_EXAMPLES / example).read_text())
    engine = manifest["spec"]["engine"]
    engine.pop("device", None)
    engine["kind"] = "sim"
    manifest["spec"]["transfer"] = {"engine_order": []}
    return manifest
