"""Reading the kernel's files."""

import math

import pytest

from llmserve.runner.host import (
    CAP_SYS_PTRACE,
    GIB,
    MIB,
    Allowance,
    allowance,
    effective_capabilities,
    may_lock,
    size,
)
from tests.unit.conftest import MakeHost


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


def test_without_control_groups_there_is_no_limit(make_host: MakeHost) -> None:
    assert allowance(make_host({})) == Allowance(math.inf, math.inf, math.inf)


def test_version_2_in_a_container(make_host: MakeHost) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": str(8 * GIB),
        "sys/fs/cgroup/memory.current": str(5 * GIB),
        "sys/fs/cgroup/memory.stat": f"anon {3 * GIB}\ninactive_file {2 * GIB}\n",
    }
    assert allowance(make_host(files)) == Allowance(1.5, 8 * GIB, 5 * GIB)


def test_the_tightest_group_on_the_way_counts(make_host: MakeHost) -> None:
    files = {
        "proc/self/cgroup": "0::/user/app\n",
        "sys/fs/cgroup/user/app/cpu.max": "max 100000",
        "sys/fs/cgroup/user/cpu.max": "400000 100000",
        "sys/fs/cgroup/user/app/memory.max": str(4 * GIB),
        "sys/fs/cgroup/user/app/memory.current": str(1 * GIB),
        "sys/fs/cgroup/user/memory.max": str(6 * GIB),
        "sys/fs/cgroup/user/memory.current": str(5 * GIB),
        "sys/fs/cgroup/other/memory.max": "1",
    }
    assert allowance(make_host(files)) == Allowance(4.0, 4 * GIB, 1 * GIB)


def test_version_1_under_a_path_of_the_host(make_host: MakeHost) -> None:
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n1:name=systemd:/x\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}",
    }
    assert allowance(make_host(files)) == Allowance(2.0, 2 * GIB, GIB)


@pytest.mark.parametrize("quota", ["-1", ""])
def test_version_1_without_limits(make_host: MakeHost, quota: str) -> None:
    files = {
        "proc/self/cgroup": "3:cpu:/\n2:memory:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert allowance(make_host(files)) == Allowance()


def test_capabilities(make_host: MakeHost) -> None:
    host = make_host({"proc/self/status": "Name:\tx\nCapPrm:\tff\nCapEff:\t0000000000084000\n"})
    assert effective_capabilities(host) == 1 << 14 | 1 << CAP_SYS_PTRACE


def test_capabilities_that_cannot_be_read(make_host: MakeHost) -> None:
    assert effective_capabilities(make_host({})) == 0


@pytest.mark.parametrize(("capabilities", "may"), [(1 << 14, True), (~(1 << 14), False), (0, False)])
def test_who_may_lock_any_memory(capabilities: int, may: bool) -> None:
    assert may_lock(capabilities) is may
