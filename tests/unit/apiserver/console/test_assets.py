"""The files of the page as they are shipped."""

import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from llmserve.apiserver.console.assets import CONSOLE_PATHS, FOLDER, add_assets
from llmserve.config.schema.callers import OidcIssuer

_SOURCES = Path("ui")
_MOST_BYTES = 150 * 1024
_INPUTS = (
    "index.html",
    "package-lock.json",
    "package.json",
    "public/icon.svg",
    "tsconfig.json",
    "vite.config.ts",
)


def _client(root: str = "", *issuers: OidcIssuer) -> TestClient:
    app = FastAPI()
    add_assets(app, root, issuers)
    return TestClient(app)


def _issuer(issuer: str, **console: object) -> OidcIssuer:
    more = {"console": {"client_id": "web", **console}} if console else {}
    return OidcIssuer.model_validate(
        {"issuer": issuer, "audience": ["llm"], "rules": [{"tenant": "red"}], **more}
    )


def _source_names() -> list[str]:
    """What ui/vite.config.ts calls sources."""
    below = (path.relative_to(_SOURCES).as_posix() for path in (_SOURCES / "src").rglob("*"))
    made_of = re.compile(r".*(?<!\.test)\.(css|svelte|ts)")
    return sorted([*_INPUTS, *filter(made_of.fullmatch, below)])


def test_the_shipped_build_is_that_of_the_sources() -> None:
    digest = hashlib.sha256()
    for name in _source_names():
        digest.update(f"{name}\0".encode() + (_SOURCES / name).read_bytes() + b"\0")
    built = (FOLDER / "sources.sha256").read_text().strip()
    assert digest.hexdigest() == built, "ui/ has changed since it was built: run `make ui`"


def test_a_page_is_small_and_comes_packed() -> None:
    client = _client()
    sizes = {}
    for path in CONSOLE_PATHS:
        answer = client.get(path, headers={"accept-encoding": "gzip"})
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, "gzip")
        sizes[path] = int(answer.headers["content-length"])
    assert sizes.keys() >= {"/ui", "/ui/console.js", "/ui/console.css", "/ui/icon.svg", "/ui/licences.txt"}
    assert sum(sizes.values()) <= _MOST_BYTES, sizes


def test_a_page_runs_nothing_but_its_own_files() -> None:
    page = _client().get("/ui", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in page.headers
    assert page.headers["content-security-policy"] == (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    assert re.search(r"<style|style=|<script(?![^>]*src=)|\son\w+=|https?://", page.text) is None


def test_what_a_browser_has_is_not_sent_again() -> None:
    client = _client()
    tag = client.get("/ui").headers["etag"]
    again = client.get("/ui", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_a_page_behind_a_proxy_asks_for_its_files_there() -> None:
    page = _client("/llm/tiny").get("/ui").text
    assert '"/llm/tiny/ui/console.js"' in page
    assert '"/ui/' not in page


def test_a_page_asks_only_those_issuers_at_which_people_sign_in() -> None:
    client = _client(
        "",
        _issuer("https://login.example.com:8443/realms/llm", scopes=["llm.use", "openid"]),
        _issuer("https://tokens.example.com"),
        _issuer("http://localhost/dex", parameters={"audience": "llm"}),
    )
    policy = client.get("/ui").headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'self'"
    assert policy[-1] == "connect-src 'self' https://login.example.com:8443 http://localhost"
    first, second = client.get("/ui/sign-in.json").json()["providers"]
    assert first == {
        "issuer": "https://login.example.com:8443/realms/llm",
        "client_id": "web",
        "scope": "openid llm.use",
        "parameters": {},
    }
    assert (second["scope"], second["parameters"]) == ("openid", {"audience": "llm"})
    assert _client("").get("/ui/sign-in.json").json() == {"providers": []}
