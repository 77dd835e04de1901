from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from llmserve.apiserver.auth.oidc.key_set import KeySet
from tests.unit.apiserver.auth.oidc.conftest import EC, ED, OTHER_RSA, RSA, jwk

SHORT_RSA = rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    ("entry", "algorithms"),
    [
        (jwk(RSA), {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        (jwk(RSA, alg="RS384", use="sig"), {"RS384"}),
        (jwk(EC, kty="EC"), {"ES256"}),
        (jwk(ec.generate_private_key(ec.SECP384R1()), kty="EC"), {"ES384"}),
        (jwk(ec.generate_private_key(ec.SECP521R1()), kty="EC", key_ops=["verify"]), {"ES512"}),
        (jwk(ED, kty="OKP"), {"EdDSA"}),
    ],
)
def test_the_algorithms_are_those_of_the_key(entry: dict[str, Any], algorithms: set[str]) -> None:
    key = KeySet({"keys": [entry]}).find("k1")
    assert key is not None
    assert key.jwk.keys() == algorithms


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ", "kid": "k1"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "k1"},
        jwk(RSA, alg="HS256"),
        jwk(RSA, alg="none"),
        jwk(RSA, alg="ES256"),
        jwk(RSA, alg="RSA-OAEP"),
        jwk(RSA, alg=["RS256"]),
        jwk(RSA, use="enc"),
        jwk(RSA, key_ops=["encrypt"]),
        jwk(SHORT_RSA),
        jwk(ec.generate_private_key(ec.SECP256K1()), kty="EC"),
        jwk(EC, kty="EC", crv="P-384"),
        {"kty": "RSA", "n": "AQAB", "kid": "k1"},
        {"kty": ["RSA"], "kid": "k1"},
        {"kid": "k1"},
    ],
)
def test_what_can_check_no_signature_is_left_out(entry: dict[str, Any]) -> None:
    assert len(KeySet({"keys": [entry, jwk(OTHER_RSA, "k2")]})) == 1


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {"a": 1}}, {"keys": ["k1", 7, None]}])
def test_a_document_without_keys_has_none(document: dict[str, Any]) -> None:
    assert len(KeySet(document)) == 0


def test_a_key_is_found_by_its_id() -> None:
    both = KeySet({"keys": [jwk(RSA, "k1"), jwk(OTHER_RSA, "k2")]})
    assert both.find("k1") is not both.find("k2")
    assert both.find("k3") is None
    assert both.find(None) is None
    only = KeySet({"keys": [jwk(RSA, "k1")]})
    assert only.find(None) is only.find("k1") is not None
    nameless = KeySet({"keys": [jwk(RSA, None), jwk(OTHER_RSA, "k2")]})
    assert nameless.find(None) is not None


def test_a_set_has_at_most_100_keys() -> None:
    assert len(KeySet({"keys": [jwk(RSA, f"k{number}") for number in range(101)]})) == 100
