import re

import pytest

from llmserve.apiserver.auth.caller import ALL_SCOPES, AccessScope, Caller
from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.stores.stored_key import NewKey, id_in, make_key
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import TenantId
from llmserve.scheduler.key_limits import KeyLimits
from tests.unit.apiserver.auth.stores.conftest import NOW


def test_a_key_is_kept_by_its_digest_alone(made: NewKey) -> None:
    assert re.fullmatch(r"ls-[0-9a-f]{12}-[A-Za-z0-9_-]{43}", made.text)
    assert id_in(made.text) == made.stored.id
    assert made.stored.digest == Credential(made.text).digest
    secret = made.text.split("-", 2)[2]
    assert secret not in made.stored.model_dump_json()
    assert made.stored.sha256 not in repr((made.stored, made.stored.caller))
    assert make_key("red", ("read",), NOW).text != made.text


@pytest.mark.parametrize("text", ["", "ls", "red-key", "sk-3f9a1c07be52-x", "LS-3f9a1c07be52-x"])
def test_other_keys_have_no_id(text: str) -> None:
    assert id_in(text) == ""


def test_what_a_key_may_do_is_that_of_its_caller() -> None:
    rights = {"models": ("tiny",), "adapters": (), "requests_per_second": 2.0, "max_requests_in_flight": 3}
    key = make_key("red", ("read",), NOW, **rights).stored
    limits = KeyLimits(key.id, 2.0, None, 3)
    assert key.caller == Caller(
        TenantId("red"), frozenset({AccessScope.READ}), frozenset({"tiny"}), frozenset(), limits=limits
    )
    assert (key.caller.key_id, key.caller.key_digest) == (key.id, key.sha256)
    assert make_key("ops", ("admin",), NOW).stored.caller.scopes == ALL_SCOPES


def test_a_key_is_valid_until_it_expires() -> None:
    key = make_key("red", ("read",), NOW, expires_at=int(NOW) + 10).stored
    assert [key.has_expired(NOW + later) for later in (0, 9.9, 10, 11)] == [False, False, True, True]
    assert not make_key("red", ("read",), NOW).stored.has_expired(NOW * 2)


@pytest.mark.parametrize(
    ("tenant", "scopes", "rights"),
    [
        ("", ("read",), {}),
        ("red (batches)", ("read",), {}),
        ("red", (), {}),
        ("red", ("write",), {}),
        ("red", ("read",), {"requests_per_second": 0.0}),
        ("red", ("read",), {"tokens_per_second": float("inf")}),
        ("red", ("read",), {"max_requests_in_flight": 0}),
        ("red", ("read",), {"colour": "red"}),
    ],
)
def test_a_key_that_cannot_be_is_refused(
    tenant: str, scopes: tuple[str, ...], rights: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequest):
        make_key(tenant, scopes, NOW, **rights)
