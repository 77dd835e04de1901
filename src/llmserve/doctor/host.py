"""The files in which the kernel describes this machine, and sizes as words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
MIB = 1 << 20
_KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Host:
    """root: where /proc, /sys and /dev are; the tests put others there."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        """name: as in "proc/meminfo"."""
        return self.root / name

    def text(self, name: str) -> str:
        """Without surrounding space; empty when there is no such file, or it may not be read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def memory(self) -> Mapping[str, int]:
        """/proc/meminfo: sizes in bytes, counts (HugePages_Total and such) as they are."""
        return dict(_fields(self.text("proc/meminfo")))

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; nothing when it is not there."""
        try:
            return sorted(path.name for path in self.path(folder).iterdir())
        except OSError:
            return []


def _fields(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            yield name, int(words[0]) * (_KIB if words[1:] == ["kB"] else 1)


def size(size_bytes: float) -> str:
    """`23.5 GiB`, `64 MiB`."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB"
