"""`security.keys`, `scopes` and `public`: what is accepted, and what is refused with its line and path."""

import itertools

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.plan import plan_local
from llmserve.core.errors import ManifestError

HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
REDIS = "state: {backend: redis, redis: {url: 'redis://h:6379/0'}}\n"
OIDC = "security: {{oidc: [{{issuer: '{}', audience: [llmserve], rules: [{{{}}}]}}]}}\n"
TWICE = "{issuer: 'https://h', audience: [a], rules: [{tenant: t}]}"


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("", False),
        ("security: {public: {metrics: false, docs: true}}\n", False),
        ("security: {api_keys: [{tenant: red, key: k}]}\n", True),
        ("security: {keys: {file: keys.json}}\n", True),
        (REDIS + "security: {keys: {redis: true}}\n", True),
        (OIDC.format("https://login.example.com", "tenant: red"), True),
        (OIDC.format("http://localhost:8080/realms/a", "tenant_claim: org, when: {groups: a}"), True),
    ],
)
def test_when_clients_have_to_show_who_they_are(text: str, asks: bool) -> None:
    manifest = parse_manifest(HEAD + "deployment: {local: {host: 0.0.0.0}}\n" + text, "m.yaml")
    assert manifest.security.asks_callers is asks
    notes = " ".join(plan_local(manifest, range(8), itertools.count(9000).__next__).notes)
    assert ("everybody may use it" in notes) is not asks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("security: {keys: {}}\n", "m.yaml:3: security.keys: has no place; set file or redis: true"),
        (
            "security: {keys: {file: f, redis: true}}\n",
            "m.yaml:3: security.keys: has both file and redis; keep one",
        ),
        ("security: {keys: {redis: true}}\n", "m.yaml:3: security.keys.redis: needs state.redis.url"),
        (
            OIDC.format("http://login.example.com", "tenant: red"),
            "'http://login.example.com' cannot be used: an address is https://HOST/PATH",
        ),
        (OIDC.format("https://user:pw@login.example.com", "tenant: red"), "cannot be used"),
        (OIDC.format("https://login.example.com:x", "tenant: red"), "cannot be used"),
        (
            OIDC.format("https://h", "scopes: [read]"),
            "m.yaml:3: security.oidc[0].rules[0]: has no tenant; set tenant or tenant_claim",
        ),
        (
            OIDC.format("https://h", "tenant: red, tenant_claim: org"),
            "security.oidc[0].rules[0]: has both; keep one of tenant or tenant_claim",
        ),
        (
            OIDC.format("https://h", "tenant: red (batches)"),
            "m.yaml:3: security.oidc[0].rules[0].tenant: a name that ends with ' (batches)' is that of",
        ),
        (
            "security: {oidc: [{issuer: 'https://h', audience: [a], rules: []}]}\n",
            "security.oidc[0].rules",
        ),
        (
            f"security: {{oidc: [{TWICE}, {TWICE}]}}\n",
            "security.oidc[1]: names issuer 'https://h' twice",
        ),
        ("security: {api_keys: [{tenant: r, key: k, scopes: []}]}\n", "security.api_keys[0].scopes"),
        ("security: {api_keys: [{tenant: r, key: k, scopes: [all]}]}\n", "security.api_keys[0].scopes[0]"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(HEAD + text, "m.yaml")
    assert message in refused.value.message
