"""Where keys come from, and that nothing tells them."""

import base64
import traceback
from pathlib import Path

import pytest

from llmserve.core.errors import KeyUnknown, StartFailed
from llmserve.kvstore.formats import KeyRing, KeySource

KEY = bytes(range(200, 232))


@pytest.mark.parametrize("text", [KEY.hex(), KEY.hex().upper() + "\n", base64.b64encode(KEY).decode()])
def test_a_key_from_a_file_or_a_variable(text: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    assert KeySource("a", file=file).read({}) == KEY
    assert KeySource("a", variable="KV_KEY").read({"KV_KEY": text}) == KEY


@pytest.mark.parametrize(
    "text", ["", "short", KEY[:16].hex(), KEY.hex()[:-1] + "x", "=" * 44, "ключ", KEY.hex() + "00"]
)
def test_what_is_no_key_is_refused_without_being_told(text: str) -> None:
    with pytest.raises(StartFailed, match=r"'a': \$KV_KEY must hold 32 bytes") as caught:
        KeySource("a", variable="KV_KEY").read({"KV_KEY": text})
    said = "".join(traceback.format_exception(caught.value, chain=True))
    assert not text or text not in said.replace("short", "", said.count('"short"'))


def test_a_missing_key_is_named_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"'a': \$KV_KEY is not set"):
        KeySource("a", variable="KV_KEY").read({})
    with pytest.raises(StartFailed, match="nowhere"):
        KeySource("a", file=tmp_path / "nowhere").read({})


def test_the_last_key_is_the_newest() -> None:
    sources = [KeySource("old", variable="OLD"), KeySource("new", variable="NEW")]
    ring = KeyRing.load(sources, {"OLD": KEY.hex(), "NEW": KEY[::-1].hex()})
    assert ring.newest_id == "new"
    assert ring.cipher("old") is not ring.cipher("new")


def test_a_key_that_is_gone_is_named() -> None:
    with pytest.raises(KeyUnknown, match="'gone'"):
        KeyRing([("a", KEY)]).cipher("gone")


def test_a_ring_tells_ids_only() -> None:
    assert repr(KeyRing([("a", KEY), ("b", KEY)])) == "KeyRing(a, b)"


@pytest.mark.parametrize("ids", [[], ["a", "a"], [""], ["x" * 65], ["a\n"], ["ß"]])
def test_rings_that_cannot_be(ids: list[str]) -> None:
    with pytest.raises(StartFailed):
        KeyRing([(key_id, KEY) for key_id in ids])
