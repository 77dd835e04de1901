"""The floor of the gateway: vLLM's own OpenAI layer in one process, on an engine that answers at once.

`python -m bench.gateway.floor MANIFEST MODEL_DIR` serves on a free port, and prints its number.
"""

import subprocess
import sys
from pathlib import Path
from types import TracebackType

import uvloop

from bench.server_process import stop
from llmserve.engines.vllm.environment import set_apiserver_environment

MARK = "BENCH "


class Floor:
    """The parent's side. manifest: the options of the cluster's apiserver are those of this one. url: known
    once it is entered."""

    def __init__(self, manifest: Path, model: Path) -> None:
        self._command = [sys.executable, "-m", "bench.gateway.floor", str(manifest), str(model)]
        self.url = ""
        self.pid = 0

    def __enter__(self) -> "Floor":
        """Errors: RuntimeError when it does not start."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self.url = f"http://127.0.0.1:{int(line.removeprefix(MARK))}"
                return self
        raise RuntimeError(f"vLLM's OpenAI layer did not start: exit code {self._process.wait()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        stop(self._process)


def main(manifest: Path, model: Path) -> None:
    set_apiserver_environment()
    # Imported here, because it reads the environment.
    from bench.gateway.instant import serve

    uvloop.run(serve(manifest, model, lambda port: print(f"{MARK}{port}", flush=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
