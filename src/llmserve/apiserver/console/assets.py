"""The files of the page, which `make ui` builds from ui/. They are the same for everybody and hold no secret,
so that they need no key: the page asks for one itself."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

FOLDER = Path(__file__).parents[1] / "ui"
_PAGE = "/ui"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# No script and no style but those of the files, no request to anybody else, in nobody's frame.
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
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


CONSOLE_PATHS = frozenset(map(_path_of, _files()))


@dataclass(frozen=True, slots=True)
class _Asset:
    """body: as it is. packed: with gzip. tag: an ETag of the body."""

    kind: str
    body: bytes
    packed: bytes
    tag: str

    @classmethod
    def of(cls, file: Path, root: str) -> "_Asset":
        """root: the path under which a proxy serves this apiserver."""
        body = file.read_bytes()
        if file.suffix == ".html":
            body = body.replace(b'"/ui/', f'"{root}/ui/'.encode())
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return cls(_KINDS[file.suffix], body, gzip.compress(body, mtime=0), tag)

    def answer(self, request: Request) -> Response:
        headers = {**_HEADERS, "etag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(self.packed, headers=headers, media_type=self.kind)
        return Response(self.body, headers=headers, media_type=self.kind)


def add_assets(app: FastAPI, root: str) -> None:
    """root: as Paths.root. The console's own path ends without a slash, which the gate takes off."""
    for file in _files():
        _add(app, _path_of(file), _Asset.of(file, root))


def _add(app: FastAPI, path: str, asset: _Asset) -> None:
    @app.get(path, include_in_schema=False)
    async def file(request: Request) -> Response:
        return asset.answer(request)
