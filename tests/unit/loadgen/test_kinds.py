"""Kinds, tenants and weights as the command line names them."""

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.loadgen.kinds import Kind, Tenant, parse_kind, parse_tenant, parse_weight


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("short:70", Kind("short", 200, 60, 70.0)),
        ("long", Kind("long", 4000, 500, 1.0)),
        ("long=4000/100:30", Kind("long", 4000, 100, 30.0)),
        ("300/20:0.5", Kind("300/20", 300, 20, 0.5)),
    ],
)
def test_kinds(text: str, kind: Kind) -> None:
    assert parse_kind(text) == kind


@pytest.mark.parametrize(
    "text", ["huge:1", "short:0", "short:x", "a=4000:1", "a=0/5:1", "a=5/x:1", "short:inf", ""]
)
def test_a_wrong_kind_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_kind(text)
    assert repr(text) in caught.value.message


def test_tenants_have_keys_that_may_contain_anything() -> None:
    assert parse_tenant("gold=sk=a:b", {}) == Tenant("gold", "sk=a:b", 1.0)
    assert parse_tenant("gold:4=@KEY", {"KEY": "secret"}) == Tenant("gold", "secret", 4.0)


@pytest.mark.parametrize("text", ["gold", "=key", "gold=", "gold:0=key", "gold=@NONE"])
def test_a_wrong_tenant_is_refused_without_its_key(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_tenant(text, {})
    assert "=key" not in caught.value.message


def test_weights() -> None:
    assert parse_weight("gold=4") == ("gold", 4.0)
    for text in ("gold", "=4", "gold=0", "gold=x"):
        with pytest.raises(InvalidRequest, match="--weights"):
            parse_weight(text)
