"""The names of adapters as one request sees them, and sources as clients write them."""

import asyncio

import pytest

from llmserve.apiserver.adapters.manager import name_for, read_source
from llmserve.apiserver.adapters.names import AdapterNames, ModelAdapters
from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.http.scope import RequestScope, enter_scope
from llmserve.config.adapter_source import parse_adapter_source
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest

SQL = NamedAdapter("sql", AdapterDigest("1"), "tiny", "dir:/adapters/sql")
LEGAL = NamedAdapter("org/legal", AdapterDigest("2"), "tiny")
OTHERS = NamedAdapter("poems", AdapterDigest("9"), "large", "dir:/adapters/poems")


@pytest.fixture
def scope() -> RequestScope:
    scope = RequestScope()
    enter_scope(scope)
    return scope


@pytest.fixture
def names(scope: RequestScope) -> AdapterNames:
    names = AdapterNames()
    names.update([SQL, LEGAL, OTHERS])
    return names


@pytest.fixture
def of_tiny(names: AdapterNames) -> ModelAdapters:
    return ModelAdapters(names, "tiny")


def test_a_key_sees_only_its_own(names: AdapterNames, of_tiny: ModelAdapters, scope: RequestScope) -> None:
    assert (list(of_tiny), len(of_tiny)) == (["sql", "org/legal"], 2)
    scope.caller = Caller(adapters=frozenset({"sql", "none"}))
    assert (list(of_tiny), len(of_tiny)) == (["sql"], 1)
    assert "org/legal" not in of_tiny
    assert of_tiny.find("2") is None
    assert names.meaning("org/legal") == LEGAL  # whoever asks


def test_a_model_has_none_of_another_one(of_tiny: ModelAdapters, names: AdapterNames) -> None:
    assert "poems" not in of_tiny
    assert of_tiny.find("poems") is of_tiny.find("9") is of_tiny.find("dir:/adapters/poems") is None
    assert list(ModelAdapters(names, "large")) == ["poems"]


def test_an_adapter_is_found_by_name_digest_and_source(of_tiny: ModelAdapters, names: AdapterNames) -> None:
    assert of_tiny.find("sql") == of_tiny.find("1") == of_tiny.find("dir:/adapters/sql") == SQL
    assert of_tiny.find("") is of_tiny.find("none") is None
    assert names.meaning("none") is None


def test_a_chosen_version_outlives_its_name(
    names: AdapterNames, of_tiny: ModelAdapters, scope: RequestScope
) -> None:
    scope.adapter = SQL
    names.update([NamedAdapter("sql", AdapterDigest("3"), "tiny")])
    assert of_tiny["sql"].adapter == SQL
    names.update([])
    assert of_tiny["sql"].adapter == SQL
    assert len(of_tiny) == 0


def test_a_request_carries_its_name_parent_and_a_path_that_is_never_empty(of_tiny: ModelAdapters) -> None:
    sql, legal = of_tiny["sql"], of_tiny["org/legal"]
    assert (sql.lora_name, sql.base_model_name, sql.lora_path) == ("sql", "tiny", "dir:/adapters/sql")
    assert legal.lora_path == "/llmserve/adapters/2"


async def test_a_change_is_told(names: AdapterNames) -> None:
    before = names.changed
    waiting = asyncio.create_task(before.wait())
    names.update([])
    assert await waiting
    assert not names.changed.is_set()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/adapters/sql/", "dir:/adapters/sql"),
        ("/adapters/a/../sql", "dir:/adapters/sql"),
        ("dir:/adapters/sql", "dir:/adapters/sql"),
        ("org/sql", "hub:org/sql"),
        ("org/sql@v1", "hub:org/sql@v1"),
        ("s3://bucket/sql", "s3://bucket/sql"),
    ],
)
def test_sources_as_clients_write_them(text: str, source: str) -> None:
    assert str(read_source(text, "lora_path")) == source


@pytest.mark.parametrize("text", ["", "sql", "./sql", "a/b/c", "ftp://a/b", "dir:sql", "hub:sql"])
def test_what_is_no_source_names_the_field(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^lora_path: ") as caught:
        read_source(text, "lora_path")
    assert caught.value.field == "lora_path"


def test_the_name_for_a_source_and_a_model_is_their_own_and_always_the_same() -> None:
    sources = [
        parse_adapter_source(text)
        for text in (
            "dir:/a/sql",
            "dir:/b/sql",
            "hub:org/sql",
            "hub:org/sql@v1",
            "s3://bucket/sql",
            "s3://sql",
        )
    ]
    models = ("tiny", "large")
    found = [name_for(source, model) for source in sources for model in models]
    assert len(set(found)) == len(sources) * len(models), "a name is that of one adapter, whatever its model"
    assert found == [name_for(source, model) for source in sources for model in models]
    assert all(name.startswith("sql-") for name in found)
