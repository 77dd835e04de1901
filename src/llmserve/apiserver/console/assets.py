"""The files of the page, which `make ui` builds from ui/, and where people may sign in. They are the same for
everybody and hold no secret, so that they need no key: the page asks for one itself."""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import Response

from llmserve.config.schema.callers import OidcIssuer

FOLDER = Path(__file__).parents[1] / "ui"
_PAGE = "/ui"
_SIGN_IN = f"{_PAGE}/sign-in.json"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# No script and no style but those of the files, in nobody's frame.
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}


def _path_of(file: Path) -> str:
    return _PAGE if file.name == "index.html" else f"{_PAGE}/{file.name}"


def _files() -> list[Path]:
    return sorted(file for file in FOLDER.iterdir() if file.suffix in _KINDS)


CONSOLE_PATHS = frozenset({_SIGN_IN, *map(_path_of, _files())})


@dataclass(frozen=True, slots=True)
class _Asset:
    """body: as it is. packed: with gzip. headers: with an ETag of the body."""

    kind: str
    body: bytes
    packed: bytes
    headers: Mapping[str, str]

    @classmethod
    def of(cls, kind: str, body: bytes, policy: str) -> "_Asset":
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {**_HEADERS, "content-security-policy": policy, "etag": tag}
        return cls(kind, body, gzip.compress(body, mtime=0), headers)

    def answer(self, request: Request) -> Response:
        headers = dict(self.headers)
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(self.packed, headers=headers, media_type=self.kind)
        return Response(self.body, headers=headers, media_type=self.kind)


def add_assets(app: FastAPI, root: str, issuers: Sequence[OidcIssuer] = ()) -> None:
    """root: the path under which a proxy serves this apiserver, as Paths.root. The console's own path ends
    without a slash, which the gate takes off. issuers: those whose tokens are taken."""
    providers = [one for one in issuers if one.console is not None]
    policy = _policy(providers)
    for file in _files():
        _add(app, _path_of(file), _Asset.of(_KINDS[file.suffix], _body_of(file, root), policy))
    listed = json.dumps({"providers": list(map(_provider, providers))}).encode()
    _add(app, _SIGN_IN, _Asset.of("application/json", listed, policy))


def _policy(providers: Sequence[OidcIssuer]) -> str:
    """Returns the content security policy. The page asks this apiserver, and for tokens the issuers at which
    people sign in, and nobody else."""
    urls = (urlsplit(one.issuer) for one in providers)
    origins = dict.fromkeys(f"{url.scheme}://{url.netloc}" for url in urls)
    return f"{_POLICY}; connect-src 'self' {' '.join(origins)}" if origins else _POLICY


def _provider(issuer: OidcIssuer) -> dict[str, Any]:
    client = issuer.console
    assert client is not None
    return {
        "issuer": issuer.issuer,
        "client_id": client.client_id,
        "scope": " ".join(dict.fromkeys(("openid", *client.scopes))),
        "parameters": client.parameters,
    }


def _body_of(file: Path, root: str) -> bytes:
    body = file.read_bytes()
    return body.replace(b'"/ui/', f'"{root}/ui/'.encode()) if file.suffix == ".html" else body


def _add(app: FastAPI, path: str, asset: _Asset) -> None:
    @app.get(path, include_in_schema=False)
    async def file(request: Request) -> Response:
        return asset.answer(request)
