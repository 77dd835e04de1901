"""An issuer that is made up: its keys are real, and its documents are what a test says."""

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.oidc.verifier import OidcVerifier
from llmserve.config.schema.callers import OidcIssuer
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import Unavailable

_TIMES = ("exp", "nbf", "iat")
ISSUER = "https://login.example.com"
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
_ALGORITHM = {
    "RSA": jwt.algorithms.RSAAlgorithm,
    "EC": jwt.algorithms.ECAlgorithm,
    "OKP": jwt.algorithms.OKPAlgorithm,
}


def jwk(key: PrivateKeyTypes, kid: str | None = "k1", kty: str = "RSA", **more: Any) -> dict[str, Any]:
    """The public key, as an issuer shows it."""
    fields: dict[str, Any] = _ALGORITHM[kty].to_jwk(key.public_key(), as_dict=True)  # type: ignore[attr-defined]
    fields.pop("key_ops", None)
    return {**fields, **({} if kid is None else {"kid": kid}), **more}


def settings(**more: Any) -> OidcIssuer:
    rules = [{"tenant_claim": "org"}]
    return OidcIssuer.model_validate({"issuer": ISSUER, "audience": ["llmserve"], "rules": rules} | more)


def claims(**more: Any) -> dict[str, Any]:
    """exp, nbf, iat: seconds from now."""
    now = int(time.time())
    found: dict[str, Any] = {
        "iss": ISSUER,
        "aud": "llmserve",
        "exp": 600,
        "iat": 0,
        "sub": "app",
        "org": "red",
    } | more
    times = {name: now + found[name] for name in _TIMES if isinstance(found.get(name), int)}
    return {name: value for name, value in (found | times).items() if value is not None}


def signed(
    payload: dict[str, Any], key: Any = RSA, algorithm: str = "RS256", kid: str | None = "k1"
) -> Credential:
    return Credential(jwt.encode(payload, key, algorithm, headers={"kid": kid} if kid else None))


def forged(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> Credential:
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return Credential(".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts))


class FakeIssuer:
    """Its documents, by URL. away: it does not answer."""

    def __init__(self) -> None:
        self.clock, self.away, self.asked = VirtualClock(), False, list[str]()
        self.documents: dict[str, dict[str, Any]] = {
            f"{ISSUER}/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        }
        self.show(jwk(RSA))

    def show(self, *keys: dict[str, Any]) -> None:
        self.documents[f"{ISSUER}/keys"] = {"keys": list(keys)}

    async def fetch(self, url: str) -> dict[str, Any]:
        self.asked.append(url)
        if self.away or url not in self.documents:
            raise Unavailable(f"{url} does not answer")
        return self.documents[url]

    def verifier(self, **more: Any) -> OidcVerifier:
        return OidcVerifier([settings(**more)], self.fetch, self.clock)


@pytest.fixture
def issuer() -> FakeIssuer:
    return FakeIssuer()
