"""While tracing is off, nothing of OpenTelemetry is imported by us."""

import subprocess
import sys

# The apiserver is not here, nor vLLM's engines: vLLM imports it itself. That our own modules there do not is
# one of the contracts of .importlinter.
_PROGRAM = """
import sys
import llmserve.kvstore.role, llmserve.router.role, llmserve.workers.__main__
from llmserve.config.schema.service import Tracing
from llmserve.tracing.open import open_tracer
from prometheus_client import CollectorRegistry
open_tracer(Tracing(), role="r", process="r-0", cluster="c", registry=CollectorRegistry())
found = [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
assert not found, found
"""


def test_no_role_imports_it() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
