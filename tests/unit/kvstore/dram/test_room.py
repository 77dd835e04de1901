"""How much memory is free, as files of /proc and /sys tell."""

import math
from pathlib import Path

from llmserve.kvstore.dram.arena import free_huge_pages_bytes, free_memory_bytes

MIB = 1 << 20


def write(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_system_that_does_not_tell_has_no_limit(tmp_path: Path) -> None:
    assert math.isinf(free_memory_bytes(tmp_path))
    assert free_huge_pages_bytes(2 * MIB, tmp_path) == 0


def test_the_tightest_group_counts_and_idle_cache_is_free(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable:  8388608 kB\n")
    assert free_memory_bytes(tmp_path) == 8192 * MIB
    write(tmp_path, proc__self__cgroup="0::/pod/box\n")
    box, pod = tmp_path / "sys/fs/cgroup/pod/box", tmp_path / "sys/fs/cgroup/pod"
    box.mkdir(parents=True)
    (box / "memory.max").write_text("max\n")
    (pod / "memory.max").write_text(f"{100 * MIB}\n")
    (pod / "memory.current").write_text(f"{70 * MIB}\n")
    (pod / "memory.stat").write_text(f"anon 5\ninactive_file {20 * MIB}\n")
    assert free_memory_bytes(tmp_path) == 50 * MIB


def test_version_1_in_a_container_that_sees_its_group_at_the_root(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/a\n9:memory:/docker/123\n")
    root = tmp_path / "sys/fs/cgroup/memory"
    root.mkdir(parents=True)
    (root / "memory.limit_in_bytes").write_text(str(100 * MIB))
    (root / "memory.usage_in_bytes").write_text(str(90 * MIB))
    assert free_memory_bytes(tmp_path) == 10 * MIB
    (root / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert math.isinf(free_memory_bytes(tmp_path))


def test_huge_pages_that_are_promised_are_not_free(tmp_path: Path) -> None:
    folder = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    (folder / "free_hugepages").write_text("10\n")
    (folder / "resv_hugepages").write_text("4\n")
    assert free_huge_pages_bytes(2 * MIB, tmp_path) == 12 * MIB
