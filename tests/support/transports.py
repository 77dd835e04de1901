"""What tests of transports need. A test is skipped where a package or a device is missing, and only there: a
transport that is installed and says that it cannot be used fails its tests.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmserve.transfer.nixl import NixlTransport

_PACKAGES = {"nixl": "nixl", "ucx": "ucxx", "nccl": "torch"}


def need_transport(kind: str) -> None:
    """Called before a transport of this kind is made. NIXL goes before ucx: where it starts later, ucx gets
    no memory events any more, and no further ucx transport can be made in the process."""
    if (package := _PACKAGES.get(kind)) and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if kind == "ucx":
        _start_nixl()


@cache
def _start_nixl() -> None:
    if find_spec(_PACKAGES["nixl"]) is not None:
        NixlTransport().close()


def need_gpu() -> None:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is no GPU")
