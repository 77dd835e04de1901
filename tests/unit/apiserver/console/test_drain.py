"""A worker that has left is started again; where none has, the router is asked."""

from pathlib import Path

import pytest

from llmserve.apiserver.console.drain import drain, take_back
from llmserve.core.errors import NotFound, Unavailable
from llmserve.rpc.leader import RouterAddresses
from llmserve.runner.state import DrainedMark
from tests.unit.apiserver.console.looks import table

NOBODY = RouterAddresses(())


async def test_a_drained_worker_is_started_again(tmp_path: Path) -> None:
    mark = DrainedMark(tmp_path, "decode-0")
    mark.set()
    known = table("decode-0", temp_dir=str(tmp_path))
    assert await take_back(NOBODY, "decode-0", known) == {"worker": "decode-0", "started_again": True}
    assert not mark.clear()
    with pytest.raises(Unavailable):
        await take_back(NOBODY, "decode-0", known)


async def test_only_a_worker_s_own_mark_is_removed(tmp_path: Path) -> None:
    (tmp_path / "drained").mkdir()
    (tmp_path / "secret").touch()
    with pytest.raises(NotFound):
        await take_back(NOBODY, "../secret", table("decode-0", temp_dir=str(tmp_path)))
    assert (tmp_path / "secret").exists()


async def test_without_a_supervisor_the_router_is_asked() -> None:
    for known in (None, table("decode-0")):
        with pytest.raises(Unavailable, match="no router is known"):
            await take_back(NOBODY, "decode-0", known)
    with pytest.raises(Unavailable, match="no router is known"):
        await drain(NOBODY, "decode-0", 3.0)
