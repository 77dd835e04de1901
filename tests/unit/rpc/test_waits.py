"""The gRPC that is installed knows the names with which processes are started (decision 0028)."""

import os
import subprocess
import sys

import pytest

from llmserve.config.plan import GRPC_EXPERIMENTS

_SERVES = """
import asyncio, grpc.aio

async def serve():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(None)

asyncio.run(serve())
"""


@pytest.mark.parametrize(("names", "known"), [(GRPC_EXPERIMENTS, True), ("-no_such_name", False)])
def test_grpc_says_nothing_of_names_that_it_knows(names: str, known: bool) -> None:
    environment = {**os.environ, "GRPC_EXPERIMENTS": names}
    ran = subprocess.run([sys.executable, "-c", _SERVES], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ("Unknown experiment" not in ran.stderr) is known, ran.stderr
