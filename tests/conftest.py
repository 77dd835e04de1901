"""For all tests. A machine that is busy is no defect: hypothesis must not time its examples."""

import logging
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from llmserve.core.process import importing

settings.register_profile("llmserve", deadline=None)
settings.load_profile("llmserve")

# jsonschema would make 38 grammars for a check of addresses that no test asks for: a second of CPU.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type] # as if it was not installed


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What test modules import stays: looking at it for garbage, now and later, would take a fifth of the
    CPU time of imports as large as vLLM's."""
    with importing():
        return (yield)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """What a test sets (a reload does), the next one must not keep."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
