"""A role for tests of the supervisor: `python -m fake_role <flags of a role> <behaviour as JSON>`.

Standard library only, so that it starts at once. What it does goes to the file `events` of the run directory.
"""

import argparse
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_CHILD = (
    "import os, signal, sys, time\n"
    "os.setsid()\n"
    "if sys.argv[1] == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print(os.getpid(), flush=True)\n"
    "time.sleep(300)\n"
)


class FakeRole:
    """Behaviour: exit_code (ends at once), failure (what it says of that), progress (lines), ready (default
    true), ignore_term, grandchild (one that leaves the session; "stubborn": and ignores SIGTERM), shm (name
    of a segment, which must not be there yet), stdout (other lines), slow_stop_seconds. Exit code 3 when the
    file crash-NAME appears. http: where it answers every GET.

    Events: a word, the name, a pid, and of those that tests compare the time on the monotonic clock."""

    def __init__(self, name: str, run_dir: Path, http: str | None, behaviour: dict[str, Any]) -> None:
        self._name = name
        self._http = http
        self._run_dir = run_dir
        self._behaviour = behaviour
        self._stopping = False

    def live(self) -> int:
        self._note(f"started {self._name} {os.getpid()} {time.monotonic()}")
        signal.signal(signal.SIGTERM, self._on_term)
        if "failure" in self._behaviour:
            print("LLMSERVE_FAILED", json.dumps(self._behaviour["failure"]), flush=True)
        if "exit_code" in self._behaviour:
            print("boom: no such device", file=sys.stderr, flush=True)
            return int(self._behaviour["exit_code"])
        if self._http:
            _serve(self._http, lambda: self._note(f"answered {self._name} {os.getpid()}"))
        segment = self._make_segment()
        if "grandchild" in self._behaviour:
            self._leave_grandchild(self._behaviour["grandchild"])
        for line in (*self._behaviour.get("stdout", ()), *self._progress()):
            print(line, flush=True)
        if self._behaviour.get("ready", True):
            print(f"LLMSERVE_READY {self._name}", flush=True)
        while not self._stopping:
            if self._crash_file().exists():
                self._crash_file().unlink()
                self._note(f"crashed {self._name} {os.getpid()} {time.monotonic()}")
                return 3
            time.sleep(0.01)
        time.sleep(self._behaviour.get("slow_stop_seconds", 0))
        self._note(f"stopped {self._name}")
        del segment
        return 0

    def _progress(self) -> list[str]:
        return [f"LLMSERVE_PROGRESS {text}" for text in self._behaviour.get("progress", ())]

    def _on_term(self, number: int, frame: object) -> None:
        self._note(f"asked {self._name}")
        self._stopping = not self._behaviour.get("ignore_term", False)

    def _crash_file(self) -> Path:
        return self._run_dir / f"crash-{self._name}"

    def _make_segment(self) -> mmap.mmap | None:
        if "shm" not in self._behaviour:
            return None
        with open(f"/dev/shm/{self._behaviour['shm']}", "x+b") as file:
            file.truncate(4096)
            return mmap.mmap(file.fileno(), 4096)

    def _leave_grandchild(self, kind: str) -> None:
        child = subprocess.Popen((sys.executable, "-c", _CHILD, kind), stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        self._note(f"grandchild {self._name} {child.stdout.readline().strip()}")

    def _note(self, text: str) -> None:
        with (self._run_dir / "events").open("a") as file:
            file.write(f"{text}\n")


def _serve(address: str, on_first: Callable[[], None]) -> None:
    """Answers every GET. on_first: once it has answered."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            if not asked:
                on_first()
            asked.append(self.path)

        def log_message(self, *told: object) -> None: ...

    host, _, port = address.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--http")
    flags, rest = parser.parse_known_args()
    return FakeRole(flags.name, flags.run_dir, flags.http, json.loads(rest[-1])).live()


if __name__ == "__main__":
    sys.exit(main())
