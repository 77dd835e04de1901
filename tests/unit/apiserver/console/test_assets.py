"""The files of the page as they are shipped."""

import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from llmserve.apiserver.console.assets import CONSOLE_PATHS, FOLDER, add_assets

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


def _client(root: str = "") -> TestClient:
    app = FastAPI()
    add_assets(app, root)
    return TestClient(app)


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
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
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
