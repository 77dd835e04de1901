"""Manifests of clusters of simulated engines, for tests that are not about transports."""

from pathlib import Path
from typing import Any

import yaml

_EXAMPLES = Path(__file__).parents[2] / "examples"


def simulated(example: str) -> dict[str, Any]:
    """Returns an example whose KV goes over shared memory and tcp only: with NIXL, UCX and torch, each worker
    takes two more seconds of CPU to start."""
    manifest: dict[str, Any] = yaml.safe_load((_EXAMPLES / example).read_text())
    manifest["spec"]["transfer"] = {"engine_order": []}
    return manifest
