"""A server that speaks the part of the hub's protocol that a download and a search need."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", ".bin")


@dataclass
class HubServer:
    """files: of the only model, ORG/NAME. breaks_after: the line breaks after so many bytes of a large file,
    and for all later ones; None: it does not. sent: what a file has instead of its contents. refusal: status
    and error code of every answer. ranges: what downloads of large files asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: int | None = None
    sent: dict[str, bytes] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def etag(self, name: str) -> str:
        content = self.files[name]
        git = hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False)
        return self.sha256(name) if name.endswith(_LARGE) else git.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's name
        """Nothing."""

    def _answer(self, *, has_body: bool) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        hub.asked.append(f"{self.command} {url.path}")
        if hub.refusal is not None:
            status, code = hub.refusal
            self._send(status, b"{}", {"X-Error-Code": code})
        elif url.path == "/api/models":
            (text,) = parse_qs(url.query).get("search", [""])
            found = [{"id": "org/name", "downloads": 7, "tags": ["safetensors"], "gated": False}]
            self._json([one for one in found if text in str(one["id"])])
        elif url.path.startswith("/api/models/org/name/tree/"):
            self._json([self._in_tree(name) for name in hub.files])
        elif url.path.startswith("/api/models/org/name"):
            self._json({"id": "org/name", "sha": COMMIT, "siblings": [self._sibling(n) for n in hub.files]})
        elif (name := url.path.removeprefix(f"/org/name/resolve/{COMMIT}/")) in hub.files:
            self._file(name, has_body=has_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _sibling(self, name: str) -> dict[str, object]:
        hub, size = self.server.hub, len(self.server.hub.files[name])
        found: dict[str, object] = {"rfilename": name, "size": size, "blobId": hub.etag(name)}
        if name.endswith(_LARGE):
            found["lfs"] = {"sha256": hub.sha256(name), "size": size, "pointerSize": 1}
        return found

    def _in_tree(self, name: str) -> dict[str, object]:
        hub, size = self.server.hub, len(self.server.hub.files[name])
        found: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": hub.etag(name)}
        if name.endswith(_LARGE):
            found["lfs"] = {"oid": hub.sha256(name), "size": size, "pointerSize": 1}
        return found

    def _file(self, name: str, *, has_body: bool) -> None:
        hub = self.server.hub
        content = hub.sent.get(name, hub.files[name])
        headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not has_body:
            self.send_response(200)
            self._headers(headers | {"Content-Length": str(len(content))})
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not name.endswith(_LARGE):
            self._send(200, content, headers)
            return
        hub.ranges.append(f"{name} {wanted or 'all'}")
        rest, end = content[start:], hub.breaks_after
        if end == 0:
            self.close_connection = True
            return
        self._send(206 if wanted else 200, rest, headers, end=end)
        if end is not None:
            hub.breaks_after, self.close_connection = 0, True

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, end: int | None = None) -> None:
        self.send_response(status)
        self._headers(headers | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body[:end])

    def _headers(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


@contextmanager
def hub_server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serves a hub, which the hub's client of this process asks from now on. cache: of the client."""
    from huggingface_hub import constants, file_download

    hub = HubServer()
    server = _Server(hub)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is lost when a line breaks
    without_waits = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(file_download, "time", without_waits)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
