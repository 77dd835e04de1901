"""How NIXL's absence is told, and how a process ends that has used it."""

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.nixl import NixlTransport


def test_a_machine_without_nixl_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(TransportUnavailable, match="cannot be imported"):
        NixlTransport()


class FakeApi(ModuleType):
    """The two names that are used of nixl._api, with an agent that lacks UCX or does not start."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__("nixl._api")
        self._error = error

    def nixl_agent_config(self, **options: Any) -> dict[str, Any]:
        assert options["enable_prog_thread"] is False, "that thread spins on a core"
        return options

    def nixl_agent(self, name: str, config: dict[str, Any]) -> Any:
        if self._error:
            raise self._error
        agent = ModuleType(name)
        agent.__dict__["backends"] = {}
        return agent


@pytest.mark.parametrize(
    ("error", "reason"), [(None, "no UCX backend"), (RuntimeError("no plugins"), "RuntimeError: no plugins")]
)
def test_a_nixl_that_does_not_work_is_told_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, reason: str
) -> None:
    api = FakeApi(error)
    package = ModuleType("nixl")
    package.__dict__["_api"] = api
    monkeypatch.setitem(sys.modules, "nixl", package)
    monkeypatch.setitem(sys.modules, "nixl._api", api)
    with pytest.raises(TransportUnavailable, match=reason):
        NixlTransport()


def test_a_process_that_used_nixl_ends_in_order() -> None:
    """Where the system has RDMA libraries, a process of NIXL's ends with a segmentation fault."""
    pytest.importorskip("nixl")
    script = "from llmserve.transfer.nixl import NixlTransport; NixlTransport().close()"
    free = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    ended = subprocess.run([sys.executable, "-c", script], env=free, timeout=50, check=False)
    assert ended.returncode == 0
