import pytest
from pydantic import ValidationError

from llmserve.apiserver.auth.caller import ALL_SCOPES, CLIENT_SCOPES, AccessScope, Caller
from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.manifest_keys import ManifestKeys, load_keys
from llmserve.config.schema import ApiKey
from llmserve.core.errors import ManifestError, NotAuthenticated
from llmserve.core.ids import TenantId
from llmserve.scheduler.key_limits import KeyLimits

RED = Caller(TenantId("red"))


def found(declared: ApiKey, key: str = "k") -> Caller:
    caller = load_keys([declared], {}).find(Credential(key).digest)
    assert caller is not None
    return caller


def test_a_key_is_good_for_inference_and_reading_unless_it_says_otherwise() -> None:
    assert found(ApiKey(tenant="red", key="k")).scopes == CLIENT_SCOPES
    assert found(ApiKey(tenant="red", key="k", scopes=("read",))).scopes == {AccessScope.READ}
    assert found(ApiKey(tenant="red", key="k", scopes=("admin",))).scopes == ALL_SCOPES


def test_an_admin_has_all_scopes() -> None:
    caller = found(ApiKey(tenant="ops", key="k", admin=True, scopes=("read",)))
    assert (caller.tenant, caller.scopes, caller.admin) == ("ops", ALL_SCOPES, True)


def test_a_key_may_be_limited_to_some_models_and_adapters() -> None:
    limited = found(ApiKey(tenant="red", key="k", models=("tiny",), adapters=()))
    assert (limited.may_use_model("tiny"), limited.may_use_model("large")) == (True, False)
    assert not limited.may_use_adapter("sql")
    free = found(ApiKey(tenant="red", key="k"))
    assert free.may_use_model("large")
    assert free.may_use_adapter("sql")


def test_a_key_may_have_limits_in_the_cluster() -> None:
    """Each key has its own, also of one tenant."""
    limits = {"max_requests_per_second": 5.0, "max_tokens_per_second": 100.0, "max_requests_in_flight": 2}
    declared = [ApiKey(tenant="red", key=key, **limits) for key in ("k", "l")]  # type: ignore[arg-type]
    keys = load_keys([*declared, ApiKey(tenant="red", key_env="RED_KEY")], {"RED_KEY": "m"})
    callers = [keys.find(Credential(key).digest) for key in "klm"]
    found = [caller.limits for caller in callers if caller]
    assert found == [
        KeyLimits("security.api_keys[0]", 5.0, 100.0, 2),
        KeyLimits("security.api_keys[1]", 5.0, 100.0, 2),
        KeyLimits("RED_KEY"),
    ]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_is_a_number_over_0(rate: float) -> None:
    with pytest.raises(ValidationError, match="max_requests_per_second"):
        ApiKey(tenant="red", key="k", max_requests_per_second=rate)


def test_what_names_a_key_is_no_secret() -> None:
    assert found(ApiKey(tenant="red", key="k-secret"), "k-secret").key_id == "security.api_keys[0]"
    keys = load_keys([ApiKey(tenant="red", key_env="RED_KEY")], {"RED_KEY": "k-secret"})
    caller = keys.find(Credential("k-secret").digest)
    assert caller is not None
    assert caller.key_id == "RED_KEY"
    assert "k-secret" not in repr((keys.__dict__, caller))


def test_several_keys_of_one_tenant() -> None:
    keys = ManifestKeys({"red-key": RED, "other-red-key": RED, "blue-key": Caller(TenantId("blue"))})
    tenants = [
        caller and caller.tenant
        for key in ("red-key", "other-red-key", "blue-key", "red", "")
        for caller in [keys.find(Credential(key).digest)]
    ]
    assert tenants == ["red", "red", "blue", None, None]


def test_a_caller_of_before_is_let_in_while_its_key_is_its_tenant_s() -> None:
    keys = ManifestKeys({"red-key": RED, "other-red-key": RED})
    caller = keys.find(Credential("red-key").digest)
    assert caller is not None
    assert caller.key_digest is not None
    assert "red-key" not in caller.key_digest
    keys.check(caller)
    gone = "the API key is not known any more"
    for others in ({}, {"other-red-key": caller}, {"red-key": Caller(TenantId("blue"))}):
        with pytest.raises(NotAuthenticated, match=gone):
            ManifestKeys(others).check(caller)


def test_keys_come_from_the_manifest_or_the_environment() -> None:
    declared = [ApiKey(tenant="red", key="k1"), ApiKey(tenant="blue", key_env="BLUE_KEY")]
    blue = load_keys(declared, {"BLUE_KEY": "k2"}).find(Credential("k2").digest)
    assert blue is not None
    assert blue.tenant == "blue"
    with pytest.raises(ManifestError, match="BLUE_KEY"):
        load_keys(declared, {"BLUE_KEY": ""})
