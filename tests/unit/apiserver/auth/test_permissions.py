import pytest
from pydantic import ValidationError

from llmserve.apiserver.auth.caller import ALL_SCOPES, CLIENT_SCOPES, AccessScope, Caller
from llmserve.apiserver.auth.permissions import NEEDS, check_scope
from llmserve.config.schema import Api
from llmserve.core.errors import Forbidden, NotFound

INFERENCE, READ = AccessScope.INFERENCE, AccessScope.READ
ONLY_SHOW = {f"/admin/v1/{name}" for name in ("caller", "events", "kv", "requests", "status", "tenants")}


def may(path: str, *scopes: AccessScope) -> bool:
    try:
        check_scope(Caller(scopes=frozenset(scopes)), path)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    ("path", "inference", "read"),
    [
        ("/v1/chat/completions", True, False),
        ("/v1/responses/resp_1", True, False),
        ("/v1/responses/resp_1/cancel", True, False),
        ("/v1/files/file-1/content", True, False),
        ("/v1/models", True, True),
        ("/v1/models/org/name/with/slashes", True, True),
        ("/v1/requests/chatcmpl-1/explain", True, True),
        ("/openapi.json", True, True),
        ("/metrics", False, True),
        ("/admin/reload", False, False),
        ("/admin/v1/caller", True, True),
        ("/admin/v1/status", False, True),
        ("/admin/v1/requests", True, True),
        ("/v1/requests/chatcmpl-1/trace", True, True),
        ("/admin/v1/events", False, True),
        ("/admin/v1/workers/decode-0/drain", False, False),
        ("/admin/v1/adapters", False, False),
        ("/admin/v1/adapters/a/b/pin", False, False),
        ("/admin/v1/models", False, False),
        ("/admin/v1/models/org/name", False, False),
        ("/models/load", False, False),
        ("/models/unload", False, False),
        ("/models/search/org/name", False, False),
        ("/v1/load_lora_adapter", False, False),
    ],
)
def test_what_each_scope_is_good_for(path: str, inference: bool, read: bool) -> None:
    assert (may(path, INFERENCE), may(path, READ), may(path)) == (inference, read, False)
    assert may(path, INFERENCE, READ) == (inference or read)
    check_scope(Caller(scopes=ALL_SCOPES), path)


def test_the_error_says_what_is_missing() -> None:
    with pytest.raises(Forbidden, match=r"this needs a key with the scope inference$"):
        check_scope(Caller(scopes=frozenset({READ})), "/v1/messages")
    with pytest.raises(Forbidden, match="inference or read"):
        check_scope(Caller(), "/v1/models")
    with pytest.raises(Forbidden, match="scope admin"):
        check_scope(Caller(scopes=CLIENT_SCOPES), "/admin/reload")


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/responses/a/b/c", "/v1/chat/completions/x", "/admin", "/v1/files/", "", "//"]
)
def test_a_path_that_is_not_in_the_table_is_nobody_s(path: str) -> None:
    for scopes in (frozenset[AccessScope](), ALL_SCOPES):
        with pytest.raises(NotFound, match="there is nothing at"):
            check_scope(Caller(scopes=scopes), path)


def test_only_admins_change_the_cluster() -> None:
    for path, scopes in NEEDS.items():
        changes = path.startswith(("/admin", "/models/")) and path not in ONLY_SHOW
        changes = changes or "lora_adapter" in path
        assert (scopes == {AccessScope.ADMIN}) == changes, path


@pytest.mark.parametrize("path", sorted(path for path in NEEDS if path.count("/") > 1))
def test_no_root_path_makes_one_path_of_another(path: str) -> None:
    """The application takes the root off a path that was checked: `/v1/models/load`, which clients may ask
    for, would be `/models/load` below a root `/v1`."""
    first = path.split("/")[1]
    for root in (f"/{first}", f"/{first}/deeper"):
        with pytest.raises(ValidationError, match="is where paths of the API begin"):
            Api(root_path=root)
    assert Api(root_path=f"/llm/{first}").root_path == f"/llm/{first}"
