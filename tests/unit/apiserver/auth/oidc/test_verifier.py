"""What a token has to be, to be let in."""

import asyncio
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.oidc import verifier as verifier_module
from llmserve.core.errors import Forbidden, NotAuthenticated, Unavailable
from llmserve.core.tasks import TaskOwner
from tests.unit.apiserver.auth.oidc.conftest import (
    EC,
    ED,
    ISSUER,
    OTHER_RSA,
    RSA,
    FakeIssuer,
    claims,
    forged,
    jwk,
    signed,
)

PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


async def refusal(issuer: FakeIssuer, token: Credential, **settings: Any) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        await issuer.verifier(**settings).caller_of(token)
    assert token.text not in refused.value.message
    return refused.value.message


async def test_a_token_names_its_tenant(issuer: FakeIssuer) -> None:
    caller = await issuer.verifier().caller_of(signed(claims()))
    assert caller is not None
    assert (caller.tenant, caller.key_id) == ("red", "oidc:app")
    assert issuer.asked == [f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/keys"]


@pytest.mark.parametrize("text", ["red-key", "ls-0-x", "a.b", "a.b.c.d", ""])
async def test_what_is_no_token_is_not_asked_for(issuer: FakeIssuer, text: str) -> None:
    assert await issuer.verifier().caller_of(Credential(text)) is None
    assert issuer.asked == []


@pytest.mark.parametrize(
    "text", ["..", "a.b.c", "e30.e30.e30", "\xff.\xff.\xff", "eyJhbGciOiJSUzI1NiJ9.W10.x"]
)
async def test_what_cannot_be_read_is_refused(issuer: FakeIssuer, text: str) -> None:
    await refusal(issuer, Credential(text))
    assert issuer.asked == []


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 0, ["RS256"], {}])
async def test_an_unsigned_token_is_refused(issuer: FakeIssuer, algorithm: Any) -> None:
    for signature in (b"", b"x"):
        await refusal(issuer, forged({"alg": algorithm, "kid": "k1"}, claims(), signature))


@pytest.mark.parametrize("secret", [PEM, PEM.strip(), b"", b"x"])
async def test_a_public_key_is_no_secret(issuer: FakeIssuer, secret: bytes) -> None:
    """Key confusion: HS256 with what everybody can read as its secret."""
    hs256 = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    unsigned = forged({"alg": "HS256", "kid": "k1", "typ": "JWT"}, claims()).text.rpartition(".")[0]
    signature = hs256.sign(unsigned.encode(), secret)
    message = await refusal(
        issuer, Credential(f"{unsigned}.{jwt.utils.base64url_encode(signature).decode()}")
    )
    assert message == "the token's algorithm is not one of its key"


async def test_an_issuer_s_shared_secret_checks_nothing(issuer: FakeIssuer) -> None:
    secret = b"a secret of 32 bytes, or more...."
    issuer.show(
        {"kty": "oct", "k": jwt.utils.base64url_encode(secret).decode(), "kid": "k1"}, jwk(EC, "k2", "EC")
    )
    assert await refusal(issuer, signed(claims(), secret, "HS256")) == "the token's key is not known"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"aud": "other"}, "for another audience"),
        ({"aud": ["other", "another"]}, "for another audience"),
        ({"aud": None}, "a claim is missing"),
        ({"aud": []}, "a claim is missing"),
        ({"exp": -40}, "it has expired"),
        ({"exp": None}, "a claim is missing"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"nbf": 60}, "not valid yet"),
        ({"iat": 60}, "not valid yet"),
    ],
)
async def test_wrong_claims_are_refused(issuer: FakeIssuer, changed: dict[str, Any], reason: str) -> None:
    assert reason in await refusal(issuer, signed(claims(**changed)))


@pytest.mark.parametrize("changed", [{"exp": -20}, {"nbf": 20}, {"aud": ["other", "llmserve"]}])
async def test_clocks_may_differ_a_little(issuer: FakeIssuer, changed: dict[str, Any]) -> None:
    token = signed(claims(**changed))
    assert await issuer.verifier().caller_of(token) is not None
    if "aud" not in changed:
        await refusal(issuer, token, clock_skew_seconds=5.0)


@pytest.mark.parametrize("iss", ["https://evil.example.com", f"{ISSUER}/", "", None, 7, [ISSUER]])
async def test_another_issuer_s_token_is_refused(issuer: FakeIssuer, iss: Any) -> None:
    await refusal(issuer, forged({"alg": "RS256", "kid": "k1"}, claims(iss=iss), b"x"))
    assert issuer.asked == []


async def test_a_wrong_signature_is_refused(issuer: FakeIssuer) -> None:
    assert "signature is wrong" in await refusal(issuer, signed(claims(), OTHER_RSA))
    head, _, tail = signed(claims()).text.split(".")
    changed = forged({}, claims(org="ops")).text.split(".")[1]
    assert "signature is wrong" in await refusal(issuer, Credential(f"{head}.{changed}.{tail}"))


async def test_a_key_is_for_its_own_algorithms(issuer: FakeIssuer) -> None:
    issuer.show(jwk(RSA, "k1"), jwk(EC, "k2", "EC"), jwk(ED, "k3", "OKP"), jwk(OTHER_RSA, "k4", alg="RS512"))
    verifier = issuer.verifier()
    for token in (
        signed(claims(), EC, "ES256", "k2"),
        signed(claims(), ED, "EdDSA", "k3"),
        signed(claims(), RSA, "PS384", "k1"),
        signed(claims(), OTHER_RSA, "RS512", "k4"),
    ):
        assert await verifier.caller_of(token) is not None
    for token in (signed(claims(), EC, "ES256", "k1"), signed(claims(), OTHER_RSA, "RS256", "k4")):
        await refusal(issuer, token)


async def test_a_valid_token_that_no_rule_lets_in_is_forbidden(issuer: FakeIssuer) -> None:
    with pytest.raises(Forbidden):
        await issuer.verifier().caller_of(signed(claims(org=None)))


async def test_the_keys_rotate(issuer: FakeIssuer) -> None:
    verifier, new = issuer.verifier(), signed(claims(), OTHER_RSA, kid="k2")
    assert await verifier.caller_of(signed(claims())) is not None
    issuer.show(jwk(OTHER_RSA, "k2"), jwk(RSA))
    issuer.clock.advance(10.0)
    assert await verifier.caller_of(new) is not None
    issuer.show(jwk(OTHER_RSA, "k2"))
    issuer.clock.advance(10.0)
    (one,) = verifier._issuers.values()
    await one.refresh()
    with pytest.raises(NotAuthenticated, match="key is not known"):  # though it was let in before
        await verifier.caller_of(signed(claims()))
    assert await verifier.caller_of(new) is not None


async def test_made_up_keys_make_nobody_ask_the_issuer_often(issuer: FakeIssuer) -> None:
    verifier = issuer.verifier()
    assert await verifier.caller_of(signed(claims())) is not None
    asked = len(issuer.asked)
    for number in range(50):
        with pytest.raises(NotAuthenticated, match="key is not known"):
            await verifier.caller_of(signed(claims(), kid=f"made-up-{number}"))
    assert len(issuer.asked) == asked
    issuer.clock.advance(10.0)
    for number in range(50):
        with pytest.raises(NotAuthenticated):
            await verifier.caller_of(signed(claims(), kid=f"made-up-{number}"))
    assert len(issuer.asked) == asked + 2  # where the keys are, and the keys


@pytest.mark.parametrize("kid", [7, ["k1"], {}, False])
async def test_a_key_s_id_is_text(issuer: FakeIssuer, kid: Any) -> None:
    await refusal(issuer, forged({"alg": "RS256", "kid": kid}, claims(), b"x"))


async def test_an_outage_locks_out_nobody_whose_key_is_known(
    issuer: FakeIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = issuer.verifier()
    assert await verifier.caller_of(signed(claims())) is not None
    issuer.away = True
    (one,) = verifier._issuers.values()
    for _ in range(3):
        issuer.clock.advance(300.0)
        await one.refresh()
    assert await verifier.caller_of(signed(claims(sub="another"))) is not None
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_before_the_first_keys_nobody_is_called_a_stranger(issuer: FakeIssuer) -> None:
    issuer.away = True
    verifier = issuer.verifier()
    with pytest.raises(Unavailable, match=r"the keys of https://login.example.com cannot be fetched now"):
        await verifier.caller_of(signed(claims()))
    issuer.away = False
    issuer.clock.advance(10.0)
    assert await verifier.caller_of(signed(claims())) is not None


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example.com", "jwks_uri": f"{ISSUER}/keys"},
        {"issuer": ISSUER, "jwks_uri": "http://login.example.com/keys"},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        {"issuer": ISSUER, "jwks_uri": 7},
        {"issuer": ISSUER},
        {},
    ],
)
async def test_where_keys_are_is_not_believed_blindly(issuer: FakeIssuer, document: dict[str, Any]) -> None:
    issuer.documents[f"{ISSUER}/.well-known/openid-configuration"] = document
    with pytest.raises(Unavailable):
        await issuer.verifier().caller_of(signed(claims()))
    assert f"{ISSUER}/keys" not in issuer.asked


async def test_an_answer_without_a_key_replaces_none(issuer: FakeIssuer) -> None:
    verifier = issuer.verifier()
    assert await verifier.caller_of(signed(claims())) is not None
    issuer.show()
    (one,) = verifier._issuers.values()
    await one.refresh()
    assert await verifier.caller_of(signed(claims(sub="another"))) is not None


async def test_the_manifest_may_say_where_the_keys_are(issuer: FakeIssuer) -> None:
    verifier = issuer.verifier(jwks_url=f"{ISSUER}/keys")
    assert await verifier.caller_of(signed(claims())) is not None
    assert issuer.asked == [f"{ISSUER}/keys"]


async def test_a_token_is_checked_once_until_it_expires(
    issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = signed(claims())
    now = [jwt.decode(token.text, options={"verify_signature": False})["exp"] - 600.0]
    verifier = issuer.verifier()
    verifier._now = lambda: now[0]
    first = await verifier.caller_of(token)
    with monkeypatch.context() as without:
        without.setattr(jwt, "decode", None)
        now[0] += 629.0  # with the skew
        assert await verifier.caller_of(token) is first
        now[0] += 1.0
        with pytest.raises(TypeError):
            await verifier.caller_of(token)


async def test_remembered_tokens_are_few(issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_module, "_MOST_REMEMBERED", 2)
    verifier = issuer.verifier()
    for name in "abc":
        await verifier.caller_of(signed(claims(sub=name)))
    assert [caller.key_id for caller, _ in verifier._known.values()] == ["oidc:b", "oidc:c"]


@pytest.mark.virtual_time
async def test_keys_are_refreshed_each_five_minutes_and_sooner_while_that_fails(issuer: FakeIssuer) -> None:
    owner, verifier = TaskOwner("test"), issuer.verifier(jwks_url=f"{ISSUER}/keys")
    issuer.away = True
    await verifier.start(owner)
    await asyncio.sleep(25.0)
    assert len(issuer.asked) == 3  # at once, and after 10 and 20 s
    issuer.away = False
    await asyncio.sleep(10.0)
    assert len(issuer.asked) == 4
    await asyncio.sleep(299.0)
    assert len(issuer.asked) == 5
    await owner.aclose()


async def test_who_gives_up_ends_no_fetch(issuer: FakeIssuer) -> None:
    """A stranger with a made-up key could keep new keys away, if the fetch ended with its request."""
    verifier, answer, fetch = issuer.verifier(jwks_url=f"{ISSUER}/keys"), asyncio.Event(), issuer.fetch
    (one,) = verifier._issuers.values()

    async def slow(url: str) -> dict[str, Any]:
        await answer.wait()
        return await fetch(url)

    one._fetch = slow
    stranger = asyncio.create_task(verifier.caller_of(signed(claims(), kid="made-up")))
    await asyncio.sleep(0)
    stranger.cancel()
    await asyncio.gather(stranger, return_exceptions=True)
    assert stranger.cancelled()
    waiting = asyncio.create_task(verifier.caller_of(signed(claims())))
    await asyncio.sleep(0)
    answer.set()
    assert await waiting is not None
    assert issuer.asked == [f"{ISSUER}/keys"]


async def test_an_end_while_keys_are_fetched(issuer: FakeIssuer) -> None:
    owner, verifier = TaskOwner("test"), issuer.verifier()
    (one,) = verifier._issuers.values()

    async def silent(url: str) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    one._fetch = silent
    await verifier.start(owner)
    await asyncio.sleep(0.01)
    await owner.aclose()
    await verifier.aclose()
    await verifier.aclose()
    assert one._fetching is None
