"""Prints the versions of what the CPU image installs, as they are in this environment, where the tests run.

python deploy/docker/constraints.py > deploy/docker/constraints-cpu.txt
"""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("cpu", "redis", "s3", "ucx")
# Installed apart, or not at all: see the Dockerfile.
LEFT_OUT = {"llmserve", "torchvision", "torchaudio", "torchcodec"}


def closure(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]]) -> Iterator[tuple[str, str]]:
    """Names and versions of a distribution and of all that it requires."""
    name = canonicalize_name(name)
    if extras <= seen.get(name, frozenset({"?"})) and name in seen:
        return
    first = name not in seen
    seen[name] = seen.get(name, frozenset()) | extras
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    if first:
        yield name, found.version
    for text in found.requires or ():
        wanted = Requirement(text)
        marker = wanted.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield from closure(wanted.name, frozenset(wanted.extras), seen)


def main() -> int:
    found = dict(closure("llmserve", frozenset(EXTRAS), {}))
    for name in sorted(found.keys() - LEFT_OUT):
        # A local version (+cpu) is one of several builds: pip takes it from the index that it is given.
        print(f"{name}=={found[name].partition('+')[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
