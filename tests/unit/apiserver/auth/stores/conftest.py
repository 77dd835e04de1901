import pytest

from llmserve.apiserver.auth.stores.stored_key import NewKey, make_key

NOW = 1_800_000_000.0


@pytest.fixture
def made() -> NewKey:
    return make_key("red", ("inference",), NOW)
