"""Regenerates rpc/gen from proto/. Developers only: needs grpcio-tools and a source checkout.

The generated code is committed so that users need no compiler; `generate(check=True)` is how
`make check` proves that it matches the .proto files.
"""

import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmserve.core.errors import LLMServeError

_GEN = Path(__file__).parent / "gen"
_PROTO_ROOT = Path(__file__).parents[3] / "proto"
_PACKAGE = "llmserve.rpc.gen"


def generate(check: bool) -> list[str]:
    """Writes the generated files, or with `check` only compares. Returns the names of the files
    that differed. Errors: LLMServeError without grpcio-tools or outside a checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        _compile(fresh)
        drifted = _drift(fresh)
        if not check:
            shutil.rmtree(_GEN, ignore_errors=True)
            shutil.copytree(fresh, _GEN)
    return drifted


def _compile(out: Path) -> None:
    if not _PROTO_ROOT.is_dir():
        raise LLMServeError(f"no .proto files at {_PROTO_ROOT}: gen-proto runs in a source checkout")
    protos = sorted(str(path.relative_to(_PROTO_ROOT)) for path in _PROTO_ROOT.rglob("*.proto"))
    outputs = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_PROTO_ROOT}", *outputs, *protos]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LLMServeError(f"protoc failed (is grpcio-tools installed?): {done.stderr.strip()}")
    for path in out.rglob("*.py*"):
        path.write_text(_rehome(path.read_text()))
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()


def _rehome(source: str) -> str:
    """protoc writes imports from the proto root; ours live under rpc/gen."""
    return re.sub(r"^from llmserve\.v1 import", f"from {_PACKAGE}.llmserve.v1 import", source, flags=re.M)


def _drift(fresh: Path) -> list[str]:
    names = {
        str(p.relative_to(root)) for root in (fresh, _GEN) for p in root.rglob("*.py*") if p.suffix != ".pyc"
    }
    return sorted(name for name in names if not _same(fresh / name, _GEN / name))


def _same(left: Path, right: Path) -> bool:
    return left.is_file() and right.is_file() and filecmp.cmp(left, right, shallow=False)


if __name__ == "__main__":
    # `llmserve gen-proto` loads code that needs what is generated: this way works without it.
    print("\n".join(generate(check=False)))
