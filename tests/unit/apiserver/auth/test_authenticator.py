import pytest

from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.auth.caller import ALL_SCOPES, CLIENT_SCOPES, Caller
from llmserve.apiserver.auth.manifest_keys import ManifestKeys
from llmserve.core.errors import NotAuthenticated
from llmserve.core.ids import DEFAULT_TENANT, TenantId

RED, BLUE = Caller(TenantId("red")), Caller(TenantId("blue"))
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
def auth() -> Authenticator:
    return Authenticator(ManifestKeys({"red-key": RED, "blue-key": BLUE}))


async def test_without_credentials_everybody_is_the_default_tenant() -> None:
    caller = await Authenticator().caller_of([(b"authorization", b"Bearer whatever")])
    assert (caller.tenant, caller.scopes) == (DEFAULT_TENANT, CLIENT_SCOPES)


async def test_without_credentials_an_admin_asks_from_this_machine() -> None:
    assert (await Authenticator().caller_of([], is_local=True)).scopes == ALL_SCOPES


async def test_with_credentials_loopback_is_nothing_special(auth: Authenticator) -> None:
    with pytest.raises(NotAuthenticated):
        await auth.caller_of([], is_local=True)
    assert not (await auth.caller_of([(b"x-api-key", b"red-key")], is_local=True)).admin


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ([(b"authorization", b"Bearer red-key")], "red"),
        ([(b"authorization", b"bearer  red-key ")], "red"),
        ([(b"x-api-key", b"blue-key")], "blue"),
        ([(b"x-api-key", b"red-key"), (b"authorization", b"Bearer red-key")], "red"),
        ([(b"authorization", b"Basic of-a-proxy"), (b"x-api-key", b"red-key")], "red"),
    ],
)
async def test_a_key_names_its_tenant(auth: Authenticator, headers: Headers, tenant: str) -> None:
    assert (await auth.caller_of([(b"host", b"x"), *headers])).tenant == tenant


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer red")],
        [(b"authorization", b"Basic red-key")],
        [(b"x-api-key", b"\xff")],
        [(b"x-api-key", b"red-key" + b"y" * 16 * 1024)],
    ],
)
async def test_anything_else_is_refused(auth: Authenticator, headers: Headers) -> None:
    with pytest.raises(NotAuthenticated):
        await auth.caller_of(headers)


@pytest.mark.parametrize("second", [b"Bearer red-key", b"Bearer wrong"])
async def test_two_keys_are_one_too_many(auth: Authenticator, second: bytes) -> None:
    """Which one would count depends on who reads them: a proxy and this server may not differ."""
    with pytest.raises(NotAuthenticated, match="two different keys"):
        await auth.caller_of([(b"x-api-key", b"blue-key"), (b"authorization", second)])


async def test_a_caller_of_before_is_let_in_while_its_key_is_known(auth: Authenticator) -> None:
    caller = await auth.caller_of([(b"x-api-key", b"red-key")])
    auth.check(caller)
    auth.check(RED)  # made when there were no keys
    auth.manifest = ManifestKeys({"blue-key": BLUE})
    with pytest.raises(NotAuthenticated, match="not known any more"):
        auth.check(caller)
