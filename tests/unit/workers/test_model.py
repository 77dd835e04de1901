"""The digest of weights names contents."""

from pathlib import Path

from llmserve.workers.model import weights_digest


def write(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_equal_contents_have_one_digest_wherever_they_lie(tmp_path: Path) -> None:
    weights = bytes(range(256)) * (40 << 10)  # 10 MiB: read in samples
    one, two = write(tmp_path / "one", weights), write(tmp_path / "two", weights)
    (two / ".lock").touch()
    assert weights_digest(one) == weights_digest(two)


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    one = write(tmp_path / "one", bytes(10 << 20))
    for name, changed in (("first", 0), ("last", (10 << 20) - 1)):
        weights = bytearray(10 << 20)
        weights[changed] = 1
        assert weights_digest(write(tmp_path / name, bytes(weights))) != weights_digest(one)
    assert weights_digest(write(tmp_path / "longer", bytes((10 << 20) + 1))) != weights_digest(one)
