"""Reading the kernel's files."""

import pytest

from llmserve.doctor.host import GIB, MIB, size
from tests.unit.doctor.conftest import MakeHost


def test_what_is_not_there_is_empty(make_host: MakeHost) -> None:
    host = make_host({"proc/version": " Linux \n"})
    assert host.text("proc/version") == "Linux"
    assert host.text("proc/cpuinfo") == ""
    assert host.names("sys/class/infiniband") == []
    assert host.memory() == {}


def test_sizes_are_bytes_and_counts_are_counts(make_host: MakeHost) -> None:
    host = make_host({"proc/meminfo": "MemTotal:  2 kB\nHugePages_Total:   3\nOdd\nText: none\n"})
    assert host.memory() == {"MemTotal": 2048, "HugePages_Total": 3}


@pytest.mark.parametrize(("number", "text"), [(0, "0 MiB"), (64 * MIB, "64 MiB"), (1.5 * GIB, "1.5 GiB")])
def test_sizes_in_words(number: float, text: str) -> None:
    assert size(number) == text
