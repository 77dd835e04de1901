"""Nothing that comes from elsewhere is loaded in a way that runs code (LMCache 2026-105192, vLLM
2025-32444)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path("src/llmserve")
_CALLS = {
    *("pickle.loads", "pickle.load", "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.loads"),
    *("cloudpickle.loads", "torch.load", "yaml.load", "eval", "exec", "compile", "os.system"),
}
_MODULES = {"zmq", "dill", "cloudpickle", "shelve", "marshal"}
_HOLDERS = {call.rpartition(".")[0] for call in _CALLS} - {""}
_ALLOWED = {
    # It reads a socket from the apiserver that started it.
    "apiserver/grammars/server.py": ["pickle.loads"],
    # It reads a pipe from the worker that forked it.
    "engines/vllm/early_process.py": ["pickle.loads"],
    # It takes bytes from vLLM's publisher, and reads them as msgpack.
    "engines/vllm/kv_events.py": ["zmq.SUB", "zmq.SUBSCRIBE", "zmq.asyncio.Context"],
}


def _loads(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "torch.load" and "weights_only=True" in ast.unparse(node):
                continue  # it knows tensors and nothing else
            if name in _CALLS or any(word.arg in ("allow_pickle", "shell") for word in node.keywords):
                yield name
        else:
            yield from _imported(node)


def _imported(node: ast.AST) -> Iterator[str]:
    """What would be called by another name than in `_CALLS`, and modules that are not used at all."""
    if isinstance(node, ast.ImportFrom):
        package = str(node.module).partition(".")[0]
        names = (f"{node.module}.{one.name}" for one in node.names)
        yield from (name for name in names if name in _CALLS or package in _MODULES)
    elif isinstance(node, ast.Import):
        renamed = {one.name for one in node.names if one.asname and one.name in _HOLDERS}
        yield from (one.name for one in node.names if one.name in _MODULES | renamed)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("pickle.loads(data)", ["pickle.loads"]),
        ("from pickle import loads", ["pickle.loads"]),
        ("from marshal import dumps", ["marshal.dumps"]),
        ("import pickle as p", ["pickle"]),
        ("import pickle\npickle.dumps(1)", []),
        ("torch.load(file, weights_only=True)", []),
    ],
)
def test_no_other_name_hides_a_load(code: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(code)
    assert list(_loads(tmp_path / "module.py")) == found


def test_no_code_comes_with_data() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if (names := list(_loads(path)))
    }
    assert found == _ALLOWED
