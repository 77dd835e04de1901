"""Other contents of the manifest are noticed once, and never half-written ones."""

import os
from pathlib import Path

import pytest

from llmserve.rpc.leader import RouterAddresses
from llmserve.runner.reloading import ManifestWatch, Reloading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text("one")
    return path


def test_nothing_has_changed(file: Path) -> None:
    watch = ManifestWatch(file)
    assert not watch.changed()
    assert not watch.changed()


def test_new_contents_count_once_they_have_settled(file: Path) -> None:
    watch = ManifestWatch(file)
    file.write_text("two..")
    assert not watch.changed()
    file.write_text("two...")
    assert not watch.changed()
    assert watch.changed()
    assert not watch.changed()


def test_a_file_that_is_replaced_is_noticed(file: Path) -> None:
    watch = ManifestWatch(file)
    fresh = file.with_suffix(".new")
    fresh.write_text("two")
    os.replace(fresh, file)
    assert [watch.changed() for _ in range(3)] == [False, True, False]


def test_the_same_contents_again_are_no_change(file: Path) -> None:
    watch = ManifestWatch(file)
    os.utime(file, ns=(1, 1))
    assert [watch.changed() for _ in range(3)] == [False, False, False]


def test_a_file_that_is_away_has_not_changed(file: Path) -> None:
    watch = ManifestWatch(file)
    file.unlink()
    assert [watch.changed() for _ in range(3)] == [False, False, False]
    file.write_text("two")
    assert [watch.changed() for _ in range(3)] == [False, True, False]


@pytest.fixture
def wrong(file: Path) -> Path:
    file.write_text("kind: LLMServe\nmodel: x\n")
    return file


@pytest.fixture
def right(file: Path) -> Path:
    file.write_text("kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n")
    return file


async def test_a_file_that_is_gone_is_said_without_guessing_at_another(file: Path) -> None:
    os.rename(file, file.with_name("a" + file.name))
    reloading = Reloading(file, RouterAddresses(("127.0.0.1:1",)), lambda text: None, watch=False)
    (said,) = await reloading._reload()
    assert f"{file}: the manifest of this cluster is gone; put it back there" in said
    assert "did you mean" not in said


async def test_a_bad_file_is_said_with_its_line(wrong: Path) -> None:
    reloading = Reloading(wrong, RouterAddresses(("127.0.0.1:1",)), lambda text: None, watch=False)
    said = await reloading._reload()
    assert said
    assert all(line.startswith("Reload: nothing was changed: ") for line in said)
    assert f"{wrong}:2: model: unknown key" in "\n".join(said)


async def test_a_router_that_is_away_is_said(right: Path) -> None:
    (said,) = await Reloading(
        right, RouterAddresses(("127.0.0.1:1",)), lambda text: None, watch=False
    )._reload()
    assert said.startswith("Reload: nothing was changed: ")
