"""An adapter of the hub, with the real client and a small server in place of the hub."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmserve.config.adapter_source import parse_adapter_source
from llmserve.core.adapters import LoraShape
from llmserve.core.errors import ModelNotFound, Unavailable
from llmserve.models.adapters import AdapterCache, open_adapter_cache
from llmserve.models.adapters.cache import DISK_VARIABLE, DRAM_VARIABLE
from tests.integration.models.fetching import MANIFEST
from tests.support.adapters import WEIGHTS, random_adapter, tiny_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = parse_adapter_source("hub:org/name@v1")


class _Hub(BaseHTTPRequestHandler):
    """Answers what the client asks of org/name: its commit and sizes, and its files."""

    folder: Path

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/org/name/revision/v1":
            body, kind = json.dumps(self._info()).encode(), "application/json"
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            body, kind = (self.folder / path.rpartition("/")[2]).read_bytes(), "application/octet-stream"
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "ETag": f'"{hash(body)}"'}
        for name, value in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _info(self) -> dict[str, object]:
        files = [{"rfilename": one.name, "size": one.stat().st_size} for one in self.folder.iterdir()]
        return {"id": "org/name", "sha": COMMIT, "siblings": files}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return random_adapter(tmp_path / "adapter", tiny_base(tmp_path / "base"), seed=1)


@pytest.fixture
def hub(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": adapter}))
    address = f"http://127.0.0.1:{server.server_port}"
    of_file = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + of_file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, name="hub")
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterCache:
    monkeypatch.setenv(DISK_VARIABLE, str(tmp_path / "cache" / "adapters"))
    monkeypatch.setenv(DRAM_VARIABLE, str(tmp_path / "memory"))
    return open_adapter_cache(MANIFEST, LoraShape(4, 16), None)


def test_an_adapter_comes_from_the_hub(hub: ThreadingHTTPServer, adapter: Path, cache: AdapterCache) -> None:
    found = cache.fetch(SOURCE)
    assert (found.path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    with pytest.raises(ModelNotFound, match="no such model on the hub"):
        cache.fetch(parse_adapter_source("hub:org/other"))


def test_a_hub_that_is_away_is_another_try_away(hub: ThreadingHTTPServer, cache: AdapterCache) -> None:
    hub.server_close()
    with pytest.raises(Unavailable, match="adapter 'hub:org/name@v1': the hub is away"):
        cache.fetch(SOURCE)
