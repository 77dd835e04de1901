"""The directories of models on the command line of an apiserver."""

from pathlib import Path

import pytest

from llmserve.apiserver.options import model_directories
from llmserve.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("given", "names", "found"),
    [
        (["/m"], ["tiny"], {"tiny": "/m"}),
        (["/a=b"], ["tiny"], {"tiny": "/a=b"}),
        (["tiny=/m"], ["tiny"], {"tiny": "/m"}),
        (["b=/b", "a=/a=1"], ["a", "b"], {"a": "/a=1", "b": "/b"}),
        (["org/a=/a"], ["a", "org/a"], {"org/a": "/a"}),
        ([], ["a", "b"], {}),
    ],
)
def test_directories(given: list[str], names: list[str], found: dict[str, str]) -> None:
    assert model_directories(given, names) == {name: Path(text) for name, text in found.items()}


def test_a_directory_of_no_model() -> None:
    with pytest.raises(InvalidRequest, match=r"--model-dir /m has to be NAME=DIR, with one of a, b"):
        model_directories(["/m"], ["a", "b"])
