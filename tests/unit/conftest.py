"""What holds for all unit tests: which event loop they run on, and what they do not import."""

import asyncio
import sys
from collections.abc import Callable, Generator, Mapping

import pytest

from tests.support.virtual_time import VirtualTimeLoop


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
