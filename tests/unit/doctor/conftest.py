"""A machine made of files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llmserve.doctor.host import Host

MakeHost = Callable[[Mapping[str, str]], Host]


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """From paths such as "proc/meminfo" to what they hold; nothing else is there."""

    def make(files: Mapping[str, str]) -> Host:
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Host(tmp_path / "root")

    return make
