"""Nothing that comes from elsewhere is loaded in a way that runs code (LMCache 2026-105192, vLLM
2025-32444)."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path("src/llmserve")
_CALLS = {
    *("pickle.loads", "pickle.load", "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.loads"),
    *("cloudpickle.loads", "torch.load", "yaml.load", "eval", "exec", "compile", "os.system"),
}
_MODULES = {"zmq", "dill", "cloudpickle", "shelve", "marshal"}
# A socket between an apiserver and a process that it started itself.
_OWN_CHILD = "apiserver/grammars/server.py"


def _loads(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "torch.load" and "weights_only=True" in ast.unparse(node):
                continue  # it knows tensors and nothing else
            if name in _CALLS or any(word.arg in ("allow_pickle", "shell") for word in node.keywords):
                yield name
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in _MODULES)


def test_no_code_comes_with_data() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if (names := list(_loads(path)))
    }
    assert found == {_OWN_CHILD: ["pickle.loads"]}
