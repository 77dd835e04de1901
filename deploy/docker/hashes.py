"""Prints a list of packages with the hash of the file of each that pip would install here, as its index names it.

python deploy/docker/hashes.py deploy/docker/requirements-cpu.txt > deploy/docker/hashes-cpu.txt

Further arguments are pip's, such as --extra-index-url. The hashes are for this version of Python and this kind of
machine. Nothing is installed.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PIP = ("-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps")


def pip_report(requirements: str, options: list[str]) -> Mapping[str, Any]:
    """What pip would install. Raises CalledProcessError when it finds not all of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, *_PIP, "--report", str(path), "-r", requirements, *options]
        subprocess.run(command, check=True)
        report: Mapping[str, Any] = json.loads(path.read_text())
        return report


def hashed(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines for `pip install --require-hashes`. Raises SystemExit for a file whose hash no index names: that of a
    file of this machine says nothing of the one that others download."""
    for one in report["install"]:
        name, version, info = one["metadata"]["name"], one["metadata"]["version"], one["download_info"]
        digest = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None or info["url"].startswith("file:"):
            raise SystemExit(f"{name}=={version}: no index names the hash of {info['url']}")
        yield f"{name}=={version} --hash=sha256:{digest}"


if __name__ == "__main__":
    print("\n".join(sorted(hashed(pip_report(sys.argv[1], sys.argv[2:])))))
