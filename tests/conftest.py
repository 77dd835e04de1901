"""For all tests. A machine that is busy is no defect: hypothesis must not time its examples."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("llmserve", deadline=None)
settings.load_profile("llmserve")


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """What a test sets (a reload does), the next one must not keep."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
