from typing import Any

import pytest

from llmserve.apiserver.auth.caller import ALL_SCOPES, CLIENT_SCOPES, AccessScope
from llmserve.apiserver.auth.oidc.claims import caller_of
from llmserve.config.schema.callers import OidcRule
from llmserve.core.errors import Forbidden

RULES = tuple(
    OidcRule.model_validate(rule)
    for rule in (
        {"when": {"realm.groups": "admins"}, "tenant": "ops", "scopes": ["admin"]},
        {"when": {"scope": "llm.read", "org": "red"}, "tenant_claim": "org", "scopes": ["read"]},
        {
            "when": {"https://example.com/tier": "gold"},
            "tenant_claim": "realm.team",
            "models": ["large"],
            "adapters": ["sql"],
            "max_priority": 3,
        },
        {"tenant_claim": "org"},
    )
)


@pytest.mark.parametrize(
    ("claims", "tenant", "scopes"),
    [
        ({"realm": {"groups": ["users", "admins"]}, "org": "red"}, "ops", ALL_SCOPES),
        ({"realm": {"groups": "admins"}}, "ops", ALL_SCOPES),
        ({"scope": "llm.use llm.read", "org": "red"}, "red", {AccessScope.READ}),
        ({"scope": "llm.use llm.read", "org": "blue"}, "blue", CLIENT_SCOPES),
        ({"scope": "llm.readers", "org": "red"}, "red", CLIENT_SCOPES),
        ({"realm": {"groups": ["admins of nothing"]}, "org": "red"}, "red", CLIENT_SCOPES),
        ({"realm": "groups", "org": ["red"]}, "red", CLIENT_SCOPES),
    ],
)
def test_the_first_rule_that_is_met_decides(claims: dict[str, Any], tenant: str, scopes: Any) -> None:
    caller = caller_of(claims, RULES)
    assert (caller.tenant, caller.scopes) == (tenant, scopes)


def test_a_rule_gives_what_a_key_gives() -> None:
    claims = {"https://example.com/tier": "gold", "realm": {"team": "a team"}, "sub": "app-1"}
    caller = caller_of(claims, RULES)
    assert caller.tenant == "a team"
    assert (caller.models, caller.adapters) == (frozenset({"large"}), frozenset({"sql"}))
    assert (caller.max_priority, caller.key_id, caller.key_digest) == (3, "oidc:app-1", None)
    assert not caller.limits


def test_limits_are_those_of_each_subject_of_an_issuer() -> None:
    rule = OidcRule(tenant="red", max_requests_per_second=2.0, max_tokens_per_second=50.0)
    who = ({"iss": "a", "sub": "1"}, {"iss": "a", "sub": "2"}, {"iss": "b", "sub": "1"}, {"iss": "a"})
    found = [caller_of({**claims, "jti": "x"}, [rule]).limits for claims in who]
    assert {(one.requests_per_second, one.tokens_per_second) for one in found} == {(2.0, 50.0)}
    assert len({one.key for one in found}) == len(who)
    assert found[0] == caller_of({"sub": "1", "iss": "a", "jti": "y"}, [rule]).limits
    assert all(one.key.startswith("oidc:") and len(one.key) < 80 for one in found)


@pytest.mark.parametrize(
    "org", [None, "", 7, ["red", "blue"], [], {"a": 1}, "a" * 129, "red\n", "red (batches)", True]
)
def test_who_has_no_tenant_is_refused(org: Any) -> None:
    with pytest.raises(Forbidden, match="claim org names no tenant"):
        caller_of({"org": org}, RULES)


def test_who_meets_no_rule_is_refused() -> None:
    with pytest.raises(Forbidden, match=r"no rule of security.oidc lets it in"):
        caller_of({"org": "red"}, RULES[:1])


@pytest.mark.parametrize("sub", [None, 7, "a\nb"])
def test_a_subject_that_is_no_name_stays_out_of_logs(sub: Any) -> None:
    assert caller_of({"org": "red", "sub": sub}, RULES).key_id == "oidc:"
