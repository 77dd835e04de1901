"""The garbage collector rests during an import, and runs as before afterwards."""

import gc

import pytest

from llmserve.core.imports import importing


@pytest.fixture(autouse=True)
def thawed() -> None:
    gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_and_is_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
        gc.unfreeze()


def test_what_was_imported_is_not_looked_at_again() -> None:
    with importing():
        kept: list[list[int]] = [[] for _ in range(1000)]  # as modules make them
    assert gc.get_freeze_count() >= len(kept)
    gc.unfreeze()


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()
