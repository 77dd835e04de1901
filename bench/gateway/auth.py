"""What it costs to find out who asks: the time from a request's headers to its caller, scope included.

The store has a thousand keys. A token is checked by its signature when it comes for the first time, and by
its digest after that. Without keys, everybody is let in.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.table import markdown
from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.auth.caller import CLIENT_SCOPES, Caller
from llmserve.apiserver.auth.manifest_keys import ManifestKeys
from llmserve.apiserver.auth.oidc.verifier import OidcVerifier
from llmserve.apiserver.auth.permissions import check_scope
from llmserve.apiserver.auth.stores.live_keys import LiveKeys
from llmserve.apiserver.auth.stores.stored_key import StoredKey, make_key
from llmserve.config.schema.callers import OidcIssuer

CALLS, KEYS, MANIFEST_KEYS = 20_000, 1000, 10
ISSUER = "https://login.example.com"
PATH = "/v1/chat/completions"
_OTHERS = [(b"host", b"llm.example.com"), (b"content-type", b"application/json"), (b"accept", b"*/*")]


class _ManyKeys:
    """A store of keys in memory."""

    def __init__(self, keys: Sequence[StoredKey]) -> None:
        self._keys = keys

    async def read(self) -> Sequence[StoredKey]:
        return self._keys

    async def add(self, key: StoredKey) -> None:
        raise AssertionError

    async def remove(self, key_id: str) -> bool:
        raise AssertionError

    async def note_uses(self, used_at: object) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        return


def run() -> str:
    return asyncio.run(_run())


async def _run() -> str:
    made = [make_key(f"tenant-{number}", ("inference",), time.time()) for number in range(KEYS)]
    stored = LiveKeys(_ManyKeys([one.stored for one in made]))
    await stored.refresh()
    own = {f"key-of-the-manifest-{number}": Caller(scopes=CLIENT_SCOPES) for number in range(MANIFEST_KEYS)}
    private = rsa.generate_private_key(65537, 2048)
    auth = Authenticator(ManifestKeys(own), stored, _verifier(private))
    tokens = [_token(private, number) for number in range(CALLS // 20)]
    ways = {
        "none": (Authenticator(), [""]),
        "a key of the manifest": (auth, list(own)),
        "a key of the store": (auth, [one.text for one in made]),
        "a token, the first time": (auth, tokens),
        "a token, later": (auth, tokens),
    }
    rows = []
    for name, (one, texts) in ways.items():
        times = len(texts) if name.endswith("first time") else CALLS
        seconds = [await _once(one, texts[number % len(texts)]) for number in range(times)]
        p99 = statistics.quantiles(seconds, n=100)[98]
        rows.append((name, f"{statistics.median(seconds) * 1e6:.1f} us", f"{p99 * 1e6:.1f} us"))
    return markdown(("who asks", "p50", "p99"), rows)


async def _once(auth: Authenticator, text: str) -> float:
    headers = [*_OTHERS, (b"authorization", f"Bearer {text}".encode())]
    began = time.perf_counter()
    check_scope(await auth.caller_of(headers), PATH)
    return time.perf_counter() - began


def _verifier(private: rsa.RSAPrivateKey) -> OidcVerifier:
    rules = [{"when": {"scope": "llm.use"}, "tenant_claim": "org"}]
    settings = {"issuer": ISSUER, "audience": ["llmserve"], "jwks_url": f"{ISSUER}/keys", "rules": rules}
    public = jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)

    async def fetch(url: str) -> dict[str, Any]:
        return {"keys": [{**public, "kid": "k1"}]}

    return OidcVerifier([OidcIssuer.model_validate(settings)], fetch)


def _token(private: rsa.RSAPrivateKey, number: int) -> str:
    claims = {
        "iss": ISSUER,
        "aud": "llmserve",
        "exp": int(time.time()) + 3600,
        "sub": f"app-{number}",
        "scope": "openid llm.use",
        "org": "red",
    }
    return jwt.encode(claims, private, "RS256", headers={"kid": "k1"})
