"""The rules of the manifest by which the claims of a token become a caller. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.apiserver.auth.caller import Caller, caller_with
from llmserve.config.schema.callers import OidcRule
from llmserve.core.errors import Forbidden
from llmserve.core.ids import BACKGROUND_SUFFIX, TenantId

_LONGEST_NAME = 128


def caller_of(claims: Mapping[str, Any], rules: Sequence[OidcRule]) -> Caller:
    """claims: those of a token that was checked. The first rule that they meet decides. Errors: Forbidden
    when they meet none, or name no tenant."""
    for rule in rules:
        if all(value in _values(claims, name) for name, value in rule.when.items()):
            return caller_with(rule, _tenant(claims, rule), _key_id(claims), counted_as=_subject(claims))
    raise Forbidden("the token is valid, and no rule of security.oidc lets it in")


def _tenant(claims: Mapping[str, Any], rule: OidcRule) -> TenantId:
    if rule.tenant is not None:
        return TenantId(rule.tenant)
    found = _values(claims, rule.tenant_claim or "")
    if len(found) != 1 or not _is_name(found[0]):
        raise Forbidden(f"the token's claim {rule.tenant_claim} names no tenant")
    return TenantId(found[0])


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and not text.endswith(BACKGROUND_SUFFIX)


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """Returns the values of a claim: text, each text of a list, or each word of `scope`. name: that of the
    claim, or the way to one that is inside another, with dots."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return found.split() if name in ("scope", "scp") else [found]
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _subject(claims: Mapping[str, Any]) -> str:
    """Returns what stands for the subject of a token in the whole cluster, since subjects of several issuers
    may have the same name."""
    named = json.dumps([claims.get("iss"), claims.get("sub")])
    return f"oidc:{hashlib.sha256(named.encode()).hexdigest()}"


def _key_id(claims: Mapping[str, Any]) -> str:
    """Returns the name of who has the token in logs."""
    subject = claims.get("sub")
    shown = subject if isinstance(subject, str) and subject.isprintable() else ""
    return f"oidc:{shown[:_LONGEST_NAME]}"
