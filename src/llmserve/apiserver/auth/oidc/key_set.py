"""The keys by which an issuer's tokens are checked (JSON Web Key Set, RFC 7517). Pure.

The algorithms of a key follow from the key itself, and never from a token: a token that is signed with a
public key as if that were a secret (HS256), or with nothing (`none`), fits no key.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jwt import PyJWK
from jwt.exceptions import PyJWTError

_log = logging.getLogger(__name__)

_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
# By `kty`, and `crv` where there is one.
_ALGORITHMS: Mapping[tuple[str, str], frozenset[str]] = MappingProxyType(
    {
        ("RSA", ""): _RSA,
        ("EC", "P-256"): frozenset({"ES256"}),
        ("EC", "P-384"): frozenset({"ES384"}),
        ("EC", "P-521"): frozenset({"ES512"}),
        ("OKP", "Ed25519"): frozenset({"EdDSA"}),
    }
)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """jwk: as PyJWT has it, for each algorithm that the key may be used with."""

    jwk: Mapping[str, PyJWK]


class KeySet:
    """kid: the id of a key. A key without one is that of tokens without one."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """document: what the issuer answers. Keys that cannot check a signature here are left out."""
        listed = document.get("keys")
        entries = listed[:_MOST_KEYS] if isinstance(listed, list) else []
        found = ((_kid(entry), _read(entry)) for entry in entries if isinstance(entry, dict))
        self._keys = {kid: key for kid, key in found if key is not None}
        self._document = document

    def __len__(self) -> int:
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and self._document == other._document

    __hash__ = None  # type: ignore[assignment]

    def find(self, kid: str | None) -> VerifyingKey | None:
        """Returns the key of this id. Without an id it is the only one of the set, if there is only one."""
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)


def _kid(entry: Mapping[str, Any]) -> str | None:
    kid = entry.get("kid")
    return kid if isinstance(kid, str) else None


def _read(entry: dict[str, Any]) -> VerifyingKey | None:
    algorithms = _algorithms_of(entry)
    try:
        jwk = {algorithm: PyJWK(entry, algorithm) for algorithm in algorithms}
    except (PyJWTError, ValueError, TypeError) as error:
        _log.warning("a key of an issuer cannot be read: %s", type(error).__name__)
        return None
    sizes = [getattr(one.key, "key_size", None) for one in jwk.values()]
    is_short = entry.get("kty") == "RSA" and any(size is None or size < _LEAST_RSA_BITS for size in sizes)
    return VerifyingKey(jwk) if jwk and not is_short else None


def _algorithms_of(entry: Mapping[str, Any]) -> frozenset[str]:
    """Returns the algorithms of which the key may check signatures; none for a key that is no public one."""
    kind, curve = entry.get("kty"), entry.get("crv", "")
    if not (isinstance(kind, str) and isinstance(curve, str) and _is_for_signatures(entry)):
        return frozenset()
    algorithms = _ALGORITHMS.get((kind, curve), frozenset())
    return frozenset(one for one in algorithms if entry.get("alg", one) == one)


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    uses = entry.get("key_ops", ["verify"])
    return entry.get("use", "sig") == "sig" and isinstance(uses, list) and "verify" in uses
