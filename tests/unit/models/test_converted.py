"""The cache of converted files, with a fake converter."""

import os
from pathlib import Path

import pytest

from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.models.converted import RECORD_NAME, ConvertedModels, convert_to, read_record
from llmserve.models.files import DigestCache, Progress, silent


class Converter:
    """Copies the source. fails_with is raised when half of the work is done."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_with: BaseException | None = None

    def __call__(self, source: Path, out: Path, progress: Progress) -> None:
        self.calls += 1
        progress("copying")
        assert list(out.iterdir()) == [], "it begins in an empty directory"
        (out / "config.json").write_text("{}")
        if self.fails_with is not None:
            raise self.fails_with
        (out / "model.safetensors").write_bytes(source.read_bytes())


@pytest.fixture
def converter() -> Converter:
    return Converter()


class Cache:
    def __init__(self, folder: Path, converter: Converter) -> None:
        self.folder = folder
        self.said: list[str] = []
        self._converter = converter

    def get(self, source: Path, version: int = 1) -> Path:
        """As a process that has just begun."""
        digests = DigestCache(self.folder / "digests.json")
        return ConvertedModels(self.folder, digests, self._converter, version).get(source, self.said.append)

    def folders(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_dir()}


@pytest.fixture
def cache(tmp_path: Path, converter: Converter) -> Cache:
    return Cache(tmp_path / "cache", converter)


def test_it_is_converted_once(cache: Cache, converter: Converter, gguf: Path) -> None:
    path = cache.get(gguf)
    assert (path / "model.safetensors").read_bytes() == gguf.read_bytes()
    assert cache.said == ["converting tiny.Q4.gguf", "copying"]
    assert cache.get(gguf) == path
    assert converter.calls == 1
    assert len(cache.said) == 2
    assert cache.folders() == {path.name}


def test_its_record_says_what_it_was_made_from(cache: Cache, gguf: Path) -> None:
    record = read_record(cache.get(gguf, version=7))
    assert record is not None
    assert record.source_sha256 == DigestCache(cache.folder / "digests.json").sha256(gguf)
    assert record.converter_version == 7
    assert set(record.files) == {"config.json", "model.safetensors"}


def test_the_contents_and_the_converter_make_the_name(cache: Cache, converter: Converter, gguf: Path) -> None:
    first, other_version = cache.get(gguf), cache.get(gguf, version=2)
    moved = gguf.with_name("other")
    moved.mkdir()
    same = moved / gguf.name
    same.write_bytes(gguf.read_bytes())
    assert cache.get(same) == first
    gguf.write_bytes(b"GGUF other weights")
    other_contents = cache.get(gguf)
    assert len({first, other_version, other_contents}) == 3
    assert converter.calls == 3
    assert (first / "model.safetensors").read_bytes() == same.read_bytes()


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", RECORD_NAME])
@pytest.mark.parametrize("how", ["changed", "cut", "removed"])
def test_what_is_damaged_is_made_again(
    cache: Cache, converter: Converter, gguf: Path, damaged: str, how: str
) -> None:
    path = cache.get(gguf)
    file = path / damaged
    whole = file.read_bytes()
    if how == "removed":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] if how == "cut" else whole[:-1] + bytes([whole[-1] ^ 2]))
    assert cache.get(gguf) == path
    assert file.read_bytes() == whole
    assert converter.calls == 2
    assert any("damaged" in text for text in cache.said)
    assert cache.folders() == {path.name}


@pytest.mark.parametrize(
    "record", ["[]", "{}", '{"source_sha256": "", "converter_version": 1, "files": []}', "\udcff"]
)
def test_a_record_that_is_none_is_damage(cache: Cache, converter: Converter, gguf: Path, record: str) -> None:
    path = cache.get(gguf)
    (path / RECORD_NAME).write_text(record, errors="surrogateescape")
    assert cache.get(gguf) == path
    assert converter.calls == 2


def test_a_directory_without_a_record_is_not_believed(cache: Cache, converter: Converter, gguf: Path) -> None:
    """Such as one that was copied there by hand, in half."""
    path = cache.get(gguf)
    (path / RECORD_NAME).unlink()
    (path / "model.safetensors").unlink()
    assert (cache.get(gguf) / "model.safetensors").exists()
    assert converter.calls == 2


@pytest.mark.parametrize("error", [LLMServeError("no"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_nothing(
    cache: Cache, converter: Converter, gguf: Path, error: BaseException
) -> None:
    converter.fails_with = error
    with pytest.raises(type(error)):
        cache.get(gguf)
    assert cache.folders() == set()
    converter.fails_with = None
    assert cache.get(gguf).is_dir()
    assert converter.calls == 2


def test_a_full_disk_is_an_error_that_says_where(cache: Cache, converter: Converter, gguf: Path) -> None:
    converter.fails_with = OSError(28, "No space left on device")
    with pytest.raises(LLMServeError, match=rf"convert tiny\.Q4\.gguf into {cache.folder}: .*No space left"):
        cache.get(gguf)
    assert cache.folders() == set()


@pytest.mark.parametrize("name", ["tiny.Q4.gguf", "ti[n]y*.gguf"])
def test_what_makers_that_died_left_is_removed(
    cache: Cache, converter: Converter, gguf: Path, name: str
) -> None:
    source = gguf.rename(gguf.with_name(name))
    path = cache.get(source)
    (path / RECORD_NAME).unlink()
    for pid in (os.getpid(), 99999999):
        half = cache.folder / f"{path.name}.making-{pid}"
        half.mkdir()
        (half / "model.safetensors").touch()
    other = cache.folder / f"other-{path.name}.making-1"
    other.mkdir()
    assert cache.get(source) == path
    assert cache.folders() == {path.name, other.name}, "another model may be in the making"


def test_a_damaged_directory_stays_until_the_new_one_is_whole(
    cache: Cache, converter: Converter, gguf: Path
) -> None:
    path = cache.get(gguf)
    (path / "config.json").write_text("damaged")
    converter.fails_with = LLMServeError("no")
    with pytest.raises(LLMServeError):
        cache.get(gguf)
    assert (path / "model.safetensors").exists()
    assert cache.folders() == {path.name}


def test_a_directory_that_a_user_names_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "below" / "out"

    def half(source: Path, out: Path, progress: Progress) -> None:
        (out / "half").write_text("x")
        raise LLMServeError("no")

    def whole(source: Path, out: Path, progress: Progress) -> None:
        (out / "whole").write_text(source.name)

    with pytest.raises(LLMServeError, match="no"):
        convert_to(source, out, silent, half)
    assert list(out.parent.iterdir()) == []
    convert_to(source, out, silent, whole)
    assert [path.name for path in out.iterdir()] == ["whole"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(InvalidRequest, match="out is there already"):
        convert_to(source, out, silent, whole)
