"""What differs between the manifest in force and the file."""

from pathlib import Path

from llmserve.apiserver.console.manifest import ManifestFile, diff
from llmserve.apiserver.console.masking import MASK
from llmserve.rpc.leader import RouterAddresses

_BASE = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"
_KEYS = "security: {api_keys: [{tenant: red, key: %s}]}\n"


def _shown(before: str, after: str) -> list[list[tuple[str, int | None, int | None, str]]]:
    return [[(one.mark, one.before, one.after, one.text) for one in hunk] for hunk in diff(before, after)]


def test_changed_lines_have_their_numbers_and_what_is_around_them() -> None:
    before = "".join(f"k{number}: {number}\n" for number in range(1, 21))
    (hunk,) = _shown(before, before.replace("k10: 10", "k10: 11\nnew: 1"))
    assert hunk[0] == (" ", 7, 7, "k7: 7")
    assert hunk[3:6] == [("-", 10, None, "k10: 10"), ("+", None, 10, "k10: 11"), ("+", None, 11, "new: 1")]
    assert hunk[-1] == (" ", 13, 14, "k13: 13")


def test_a_secret_that_changed_differs_and_is_not_shown() -> None:
    (hunk,) = _shown(_BASE + _KEYS % "first-secret", _BASE + _KEYS % "second-secret")
    marks = [mark for mark, _, _, text in hunk if MASK in text]
    assert marks == ["-", "+"]
    assert not any("secret" in text for _, _, _, text in hunk)


def test_equal_texts_do_not_differ() -> None:
    assert diff(_BASE, _BASE) == []


async def test_a_file_that_cannot_be_used_is_a_problem_beside_what_is_in_force(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    file = ManifestFile(path, RouterAddresses(()), lambda: _BASE + _KEYS % "secret")
    view = await file.view()
    assert "is gone" in view["problem"]
    assert view["text"] == _BASE + _KEYS % MASK
    path.write_text(_BASE)
    view = await file.view()
    assert view["problem"] == "no router is known"
    assert [line.mark for line in view["diff"][0]] == [" ", " ", "-"]


async def test_without_a_file_there_is_nothing_to_reload() -> None:
    view = await ManifestFile(None, RouterAddresses(()), lambda: "").view()
    assert "without a manifest file" in view["problem"]
    assert (view["file"], view["text"]) == (None, "")
