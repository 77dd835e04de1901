import asyncio
import os
import stat
from pathlib import Path

import pytest

from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.stored_key import NewKey, make_key
from llmserve.core.errors import InvalidRequest, Unavailable
from tests.unit.apiserver.auth.stores.conftest import NOW


def test_only_the_owner_reads_the_file(tmp_path: Path, made: NewKey) -> None:
    path = tmp_path / "keys.json"
    asyncio.run(FileKeys(path).add(made.stored))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.text not in path.read_text()
    os.chmod(path, 0o640)  # as the administrator wants it
    asyncio.run(FileKeys(path).add(make_key("blue", ("read",), NOW).stored))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["keys.json"]


async def test_a_file_that_did_not_change_is_not_parsed_again(
    tmp_path: Path, made: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileKeys(tmp_path / "keys.json")
    await store.add(made.stored)
    await store.read()
    monkeypatch.setattr(FileKeys, "_parsed", None)
    assert list(await store.read()) == [made.stored]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"keys": [{"id": "x"}]}', '{"other": 1}'])
async def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=r"keys.json is no file of keys"):
        await FileKeys(path).read()


async def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path, made: NewKey) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await FileKeys(tmp_path / "missing" / "keys.json").add(made.stored)


async def test_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    path, keys = tmp_path / "keys.json", [make_key("red", ("read",), NOW).stored for _ in range(20)]
    await asyncio.gather(*(FileKeys(path).add(key) for key in keys))
    assert {key.id for key in await FileKeys(path).read()} == {key.id for key in keys}
