"""The manifest of an apiserver in tests. Nobody looks at its source: the tiny model stands for it."""

from typing import Any


def manifest_of(**sections: Any) -> dict[str, Any]:
    return {"kind": "LLMServe", "models": {"primary": {"source": "hub:some/model"}}, **sections}
