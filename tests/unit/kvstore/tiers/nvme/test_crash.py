"""kill -9 in the middle of writes, of a process of its own: what it said was DONE is there."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from llmserve.kvstore.tiers.nvme import NvmeSettings
from tests.unit.kvstore.tiers.nvme.blobs import key, open_tier, there
from tests.unit.kvstore.tiers.nvme.writing_process import MIB, SIZE

_MODULE = "tests.unit.kvstore.tiers.nvme.writing_process"


def written_until_killed(directory: Path, first: int, lines: int) -> list[int]:
    """What it said, up to its last breath."""
    command = [sys.executable, "-m", _MODULE, str(directory), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = list(islice(process.stdout, lines))
        process.kill()
        said += process.stdout.readlines()
    return [int(line) for line in said if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 60])
async def test_what_was_done_is_there_after_kill_9(tmp_path: Path, lines: int) -> None:
    said = written_until_killed(tmp_path, 1, lines)
    done = {number for number in said if number > 0}
    gone = {-number for number in said if number < 0}
    tier = await open_tier(NvmeSettings(tmp_path, 256 * MIB))
    kept = sorted(number for number in done if number % 7)
    assert len(done) >= lines - len(gone)
    assert await there(tier, kept, SIZE) == kept
    assert not any(tier.holds([key(number) for number in gone]))
    everything = [number for number in range(30_000) if tier.holds([key(number)])[0]]
    assert len(everything) == tier.usage().blobs
    assert await there(tier, everything, SIZE) == everything, "what is found is whole"
    await tier.aclose()
