"""Tokens of a real OpenID provider."""

import time
from datetime import datetime
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.oidc.fetch import fetch_json
from llmserve.apiserver.auth.oidc.verifier import OidcVerifier
from llmserve.config.schema.callers import OidcIssuer
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import NotAuthenticated, Unavailable
from tests.integration.apiserver.manifests import manifest_of
from tests.support.oidc_provider import OidcProvider, oidc_provider

__all__ = ["oidc_provider"]

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def issuer_of(provider: OidcProvider) -> dict[str, Any]:
    rules = [
        {"when": {"scope": "llm.admin"}, "tenant": "ops", "scopes": ["admin"]},
        {
            "when": {"scope": "llm.use"},
            "tenant_claim": "org",
            "scopes": ["inference"],
            "max_requests_in_flight": 7,
        },
    ]
    return {"issuer": provider.issuer, "audience": ["llmserve"], "rules": rules}


@pytest.fixture(scope="session")
def manifest(oidc_provider: OidcProvider) -> dict[str, Any]:
    return manifest_of(
        security={
            "api_keys": [{"tenant": "blue", "key": "blue-key", "max_requests_per_second": 90.0}],
            "oidc": [issuer_of(oidc_provider)],
        }
    )


class Forger:
    """Makes tokens that are like the provider's but for one thing."""

    def __init__(self, provider: OidcProvider) -> None:
        self._token = provider.token()
        self._key = rsa.generate_private_key(65537, 2048)
        self.public_pem = jwt.PyJWK(provider.keys()[0], "RS256").key.public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def header(self) -> dict[str, Any]:
        return jwt.get_unverified_header(self._token)

    @property
    def claims(self) -> dict[str, Any]:
        return jwt.decode(self._token, options={"verify_signature": False})

    def signed_by_another(self) -> str:
        return jwt.encode(self.claims, self._key, "RS256", headers={"kid": self.header["kid"]})

    def of_an_unknown_key(self) -> str:
        return jwt.encode(self.claims, self._key, "RS256", headers={"kid": "made-up"})

    def unsigned(self) -> str:
        return jwt.encode(self.claims, "", "none", headers={"kid": self.header["kid"]})

    def confused(self) -> str:
        """HS256, with the public key as the secret. PyJWT itself refuses to make such a token."""
        head, body, _ = jwt.encode(self.claims, "x" * 32, "HS256", headers={"kid": self.header["kid"]}).split(
            "."
        )
        hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        signature = hmac.sign(f"{head}.{body}".encode(), self.public_pem)
        return f"{head}.{body}.{jwt.utils.base64url_encode(signature).decode()}"


async def test_tokens_and_keys_at_once(
    cluster: Any, http: httpx.AsyncClient, oidc_provider: OidcProvider
) -> None:
    token, admin = oidc_provider.token(), oidc_provider.token(scope="llm.use llm.admin")
    shown: list[dict[str, str]] = [
        {"authorization": f"Bearer {token}"},
        {"x-api-key": token},
        {"x-api-key": "blue-key"},
        {"authorization": f"Bearer {admin}"},
    ]
    for headers in shown:
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    assert [admit.tenant for admit in cluster.router.admits] == ["red", "red", "blue", "ops"]
    of_red, again, of_blue, of_ops = (admit.key_limits for admit in cluster.router.admits)
    assert (of_red.max_requests_in_flight, of_red.key) == (7, again.key)
    assert (of_blue.requests_per_second, of_blue.key) == (90.0, "security.api_keys[0]")
    assert not of_ops.key  # its rule has none
    asked = [await http.get("/admin/v1/adapters", headers=headers) for headers in shown]
    assert [answer.status_code for answer in asked] == [403, 403, 403, 200]


async def test_a_token_without_a_rule_is_forbidden(
    cluster: Any, http: httpx.AsyncClient, oidc_provider: OidcProvider
) -> None:
    headers = {"authorization": f"Bearer {oidc_provider.token(scope='')}"}
    answer = await http.get("/v1/models", headers=headers)
    assert (answer.status_code, "www-authenticate" in answer.headers) == (403, False)


async def test_forged_tokens_are_refused(
    cluster: Any, http: httpx.AsyncClient, oidc_provider: OidcProvider
) -> None:
    forger = Forger(oidc_provider)
    for token in (
        forger.signed_by_another(),
        forger.of_an_unknown_key(),
        forger.unsigned(),
        forger.confused(),
        oidc_provider.token(resource="urn:llmserve/other"),
        oidc_provider.token()[:-4] + "AAAA",
        "a.b.c",
    ):
        answer = await http.get("/v1/models", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), token
        assert token not in answer.text


def verifier(provider: OidcProvider, clock: VirtualClock, **more: Any) -> OidcVerifier:
    return OidcVerifier([OidcIssuer.model_validate(issuer_of(provider) | more)], fetch_json, clock)


async def test_the_provider_s_keys_rotate(oidc_provider: OidcProvider) -> None:
    """From RSA to an elliptic curve, and the old key is taken away."""
    clock, old = VirtualClock(), Credential(oidc_provider.token())
    one = verifier(oidc_provider, clock)
    assert await one.caller_of(old) is not None
    oidc_provider.rotate()
    new = Credential(oidc_provider.token())
    with pytest.raises(NotAuthenticated, match="key is not known"):  # asked for it moments ago
        await one.caller_of(new)
    clock.advance(10.0)
    assert await one.caller_of(new) is not None
    assert await one.caller_of(old) is not None
    oidc_provider.retire()
    (issuer,) = one._issuers.values()
    await issuer.refresh()
    assert await one.caller_of(new) is not None
    with pytest.raises(NotAuthenticated, match="key is not known"):
        await one.caller_of(old)


async def test_clocks_and_expiry(oidc_provider: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's clock says is moved, not the token."""
    token = oidc_provider.token()

    class Moved(datetime):
        seconds = 0.0

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(time.time() + cls.seconds, tz)

    monkeypatch.setattr("jwt.api_jwt.datetime", Moved)
    for seconds, is_let_in in ((-20, True), (-40, False), (590, True), (620, True), (640, False)):
        Moved.seconds = float(seconds)
        one = verifier(oidc_provider, VirtualClock())
        if is_let_in:
            assert await one.caller_of(Credential(token)) is not None, seconds
        else:
            with pytest.raises(NotAuthenticated, match=r"not valid yet|has expired"):
                await one.caller_of(Credential(token))


async def test_an_outage_locks_out_nobody_whose_key_is_known(oidc_provider: OidcProvider) -> None:
    own = OidcProvider(oidc_provider._modules)
    own.start()
    try:
        tokens = [Credential(own.token()) for _ in range(2)]
        clock, away = VirtualClock(), VirtualClock()
        known, late = verifier(own, clock), verifier(own, away)
        assert await known.caller_of(tokens[0]) is not None
    finally:
        own.stop()
    clock.advance(300.0)
    (issuer,) = known._issuers.values()
    await issuer.refresh()
    for token in tokens:
        assert await known.caller_of(token) is not None
    with pytest.raises(Unavailable, match="cannot be fetched now"):
        await late.caller_of(tokens[0])
