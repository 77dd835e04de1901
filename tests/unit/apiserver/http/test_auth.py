import pytest

from llmserve.apiserver.http.auth import ApiKeys, Caller, load_keys
from llmserve.config.schema.security import ApiKey
from llmserve.core.errors import ManifestError, NotAuthenticated
from llmserve.core.ids import DEFAULT_TENANT, TenantId


@pytest.fixture
def keys() -> ApiKeys:
    red = Caller(TenantId("red"))
    return ApiKeys({"red-key": red, "other-red-key": red, "blue-key": Caller(TenantId("blue"))})


def test_without_keys_everybody_is_the_default_tenant() -> None:
    assert ApiKeys({}).caller_of([(b"authorization", b"Bearer whatever")]).tenant == DEFAULT_TENANT


def test_without_keys_an_admin_asks_from_this_machine() -> None:
    assert ApiKeys({}).caller_of([], is_local=True).admin
    assert not ApiKeys({}).caller_of([]).admin


def test_with_keys_only_a_key_makes_an_admin() -> None:
    declared = [ApiKey(tenant="red", key="k1"), ApiKey(tenant="ops", key="k2", admin=True)]
    keys = load_keys(declared, {})
    assert not keys.caller_of([(b"x-api-key", b"k1")], is_local=True).admin
    assert keys.caller_of([(b"x-api-key", b"k2")]) == Caller(TenantId("ops"), admin=True)


def test_a_key_may_be_limited_to_some_adapters() -> None:
    declared = [
        ApiKey(tenant="red", key="k1", adapters=("sql",)),
        ApiKey(tenant="red", key="k2", adapters=()),
    ]
    keys = load_keys(declared, {})
    assert keys.caller_of([(b"x-api-key", b"k1")]).adapters == frozenset({"sql"})
    assert keys.caller_of([(b"x-api-key", b"k2")]).adapters == frozenset()
    assert load_keys([ApiKey(tenant="red", key="k")], {}).caller_of([(b"x-api-key", b"k")]).adapters is None


@pytest.mark.parametrize(
    ("header", "tenant"),
    [
        ((b"authorization", b"Bearer red-key"), "red"),
        ((b"authorization", b"bearer  other-red-key "), "red"),
        ((b"x-api-key", b"blue-key"), "blue"),
    ],
)
def test_a_key_names_its_tenant(keys: ApiKeys, header: tuple[bytes, bytes], tenant: str) -> None:
    assert keys.caller_of([(b"host", b"x"), header]).tenant == tenant


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer red")],
        [(b"authorization", b"Basic red-key")],
        [(b"x-api-key", b"\xff")],
    ],
)
def test_anything_else_is_refused(keys: ApiKeys, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotAuthenticated):
        keys.caller_of(headers)


def test_a_caller_of_before_is_let_in_while_its_key_is_its_tenant_s(keys: ApiKeys) -> None:
    caller = keys.caller_of([(b"x-api-key", b"red-key")])
    assert caller.key_digest is not None
    assert "red-key" not in caller.key_digest
    keys.check(caller)
    keys.check(Caller(TenantId("red")))  # made when there were no keys
    gone = "the API key is not known any more"
    for others in ({}, {"other-red-key": caller}, {"red-key": Caller(TenantId("blue"))}):
        with pytest.raises(NotAuthenticated, match=gone):
            ApiKeys(others).check(caller)


def test_keys_come_from_the_manifest_or_the_environment() -> None:
    declared = [ApiKey(tenant="red", key="k1"), ApiKey(tenant="blue", key_env="BLUE_KEY")]
    keys = load_keys(declared, {"BLUE_KEY": "k2"})
    assert keys.caller_of([(b"x-api-key", b"k2")]).tenant == "blue"
    with pytest.raises(ManifestError, match="BLUE_KEY"):
        load_keys(declared, {"BLUE_KEY": ""})
