"""What holds for all unit tests: which event loop they run on, and what they do not import; and a
machine made of files."""

import asyncio
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest

from llmserve.runner.host import Host
from tests.support.virtual_time import VirtualTimeLoop

MakeHost = Callable[[Mapping[str, str]], Host]


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Importing vLLM takes 8 s: tests that need it stand at the same path in tests/integration."""
    was_there = "vllm" in sys.modules
    report = yield
    if not was_there and "vllm" in sys.modules:
        raise pytest.UsageError(f"{collector.nodeid} imports vLLM: move it to tests/integration")
    return report


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """From paths such as "proc/meminfo" to what they hold; nothing else is there."""

    def make(files: Mapping[str, str]) -> Host:
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Host(tmp_path / "root")

    return make
