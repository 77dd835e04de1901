"""Gathers the facts of this machine and puts what the checks find into sections."""

import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packaging.specifiers import SpecifierSet

import llmserve
from llmserve.config.environment import inherited
from llmserve.config.load import locate
from llmserve.config.plan import LOOPBACK
from llmserve.config.schema import Manifest, TransferConfig
from llmserve.doctor import (
    Finding,
    FindingSection,
    judge,
    kernel,
    machine,
    manifest,
    note,
    ok,
    security,
    software,
    warning,
)
from llmserve.doctor.trial import BASELINE, NEAR, run_trial
from llmserve.models.hub import cache_folder
from llmserve.models.resolve import CACHE_VARIABLE, default_cache_dir
from llmserve.runner import preflight
from llmserve.runner.gpus import GpuTopology, kv_paths, run_tool
from llmserve.runner.host import Host, allowance, available_bytes, effective_capabilities, rdma_ports
from llmserve.runner.machine import HeldPorts, available_cores, available_gpus, check_free
from llmserve.runner.state import run_dir_of
from llmserve.runner.up import plan_here
from llmserve.transfer.pinned import PinnedMemory
from llmserve.transfer.select import FAULTS_VARIABLE, makers

Check = Callable[[], Finding]
OnStep = Callable[[str], None]
"""Called with a few words for what is done now."""

_DISTRIBUTION = "llmserve"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined beside the machine. manifest: None when there is none here. is_running: a cluster
    of it runs and holds the ports and memory itself."""

    manifest: Path | None
    is_running: bool = False


def examine(subject: Subject, on_step: OnStep, host: Host | None = None) -> Iterator[FindingSection]:
    """Yields the sections in the order in which they are shown, each as soon as it is known."""
    host = host or Host()
    loaded = manifest.load(subject.manifest) if subject.manifest else None
    settings = loaded.thing if loaded else None
    devices = available_gpus()
    yield section("Machine", _machine(host, devices))
    yield section("Software", _software(bool(devices)))
    yield section("Transports", _transports(host, settings, bool(devices), on_step))
    on_step("Reading the manifest")
    yield section("Manifest", _manifest(host, subject, loaded))
    if settings is not None and subject.manifest is not None:
        yield section("Security", security.weak_settings(settings, subject.manifest))


def section(title: str, findings: Iterable[Finding]) -> FindingSection:
    """A check that fails itself becomes a finding; the findings before it stay."""
    found: list[Finding] = []
    try:
        found.extend(findings)
    except Exception as error:
        found.append(_broken(title.lower(), error))
    return FindingSection(title, tuple(found))


def _all(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """A check that fails itself does not keep the others from being made."""
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:
            yield _broken(name, error)


def _broken(name: str, error: Exception) -> Finding:
    return warning(name, "not checked", f"The check itself failed, please report it: {error!r}")


def _machine(host: Host, devices: Sequence[int]) -> Iterator[Finding]:
    names, allowed = os.uname(), allowance(host)
    capabilities, ports = effective_capabilities(host), rdma_ports(host)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    checks: dict[str, Check] = {
        "system": lambda: machine.system(names.sysname, names.release, names.machine),
        "processor": lambda: machine.processor(host, names.machine),
        "cores": lambda: machine.cores(available_cores(), allowed.cores),
        "memory": lambda: machine.memory(host, allowed),
        "swap": lambda: machine.swap(host),
        "huge pages": lambda: machine.huge_pages(host),
        "/dev/shm": lambda: kernel.shared_memory(*_room(host.path("dev/shm"))),
        "open files": lambda: kernel.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        "locked memory": lambda: kernel.locked_memory(locked, capabilities, bool(ports)),
        "process access": lambda: kernel.process_access(host, capabilities),
        "congestion control": lambda: kernel.congestion_control(host),
        "socket buffers": lambda: kernel.socket_buffers(host),
        "RDMA": lambda: kernel.rdma(host, ports),
        "GPUs": lambda: machine.gpus(host, devices, run_tool),
        "model cache": lambda: kernel.disk_cache("model cache", default_cache_dir(), CACHE_VARIABLE),
        "hub cache": lambda: kernel.disk_cache("hub cache", cache_folder(), "HF_HOME"),
    }
    if devices:
        checks["GPU modules"] = lambda: machine.gpu_modules(host, bool(ports))
        checks["PID namespace"] = lambda: machine.pid_namespace(_link(host.path("proc/self/ns/pid")))
    if len(devices) > 1:
        checks["GPU links"] = lambda: machine.gpu_links(run_tool)
        checks["GPU peer access"] = lambda: machine.gpu_peers(run_tool)
    yield from _all(checks)


def _link(path: Path) -> str:
    """Returns where a link points to; nothing when it cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _room(folder: Path) -> tuple[int, int]:
    """Returns size and free bytes of a file system; zeros when it is not there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return usage.total, usage.free


def _software(has_gpus: bool) -> Iterator[Finding]:
    versions, wanted = software.installed(software.NAMES), _wanted()
    checks: dict[str, Check] = {
        "python": lambda: software.python(platform.python_version(), _accepted_python()),
        "llmserve": lambda: ok("llmserve", llmserve.__version__),
        "vllm": lambda: software.engine(versions, wanted, has_gpus),
        "torch": lambda: software.torch(versions, wanted),
    }
    checks |= {name: partial(software.library, name, versions, wanted) for name in software.REQUIRED}
    checks |= {part.name: partial(software.option, part, versions, wanted) for part in software.OPTIONAL}
    yield from _all(checks)


def _wanted() -> software.Wanted:
    """Returns nothing when LLMServe runs without being installed."""
    try:
        return software.wanted(importlib.metadata.requires(_DISTRIBUTION) or ())
    except importlib.metadata.PackageNotFoundError:
        return {}


def _accepted_python() -> SpecifierSet:
    try:
        return SpecifierSet(importlib.metadata.metadata(_DISTRIBUTION)["Requires-Python"])
    except importlib.metadata.PackageNotFoundError:
        return SpecifierSet()


def _transports(host: Host, settings: Manifest | None, has_gpus: bool, on_step: OnStep) -> Iterator[Finding]:
    transfer = settings.transfer if settings else TransferConfig()
    setting = judge.Setting(
        order=transfer.engine_order,
        is_order_given="engine_order" in transfer.model_fields_set,
        has_rdma=any(port.is_active for port in rdma_ports(host)),
        has_gpus=has_gpus,
        install=software.transport_packages(_wanted()),
    )
    if plan := os.environ.get(FAULTS_VARIABLE):
        yield judge.faults(plan)
    on_step("Measuring memory and a plain socket")
    plain = run_trial(*BASELINE)
    yield judge.baseline(plain)
    for kind in makers(LOOPBACK):
        on_step(f"Measuring {kind}")
        yield judge.judge(kind, run_trial(*NEAR, kind), plain.rates, setting)


def _manifest(host: Host, subject: Subject, loaded: manifest.Checked[Manifest] | None) -> Iterator[Finding]:
    if loaded is None or subject.manifest is None:
        yield note("manifest", "none here", "Name one with -f, or start from llmserve.yaml of the examples.")
        return
    yield loaded.finding
    if loaded.thing is not None:
        yield manifest.environment(inherited(os.environ, loaded.thing).ignored)
        yield from _plan(host, subject, loaded.thing)
        run_dir = run_dir_of(loaded.thing, subject.manifest)
        yield manifest.run_directory(run_dir, manifest.processes_of)


def _plan(host: Host, subject: Subject, settings: Manifest) -> Iterator[Finding]:
    models = {one.served_name: manifest.loaded(settings.alone(one)) for one in settings.served}
    yield from (one.finding for parts in models.values() for one in parts)
    if subject.manifest is not None and not subject.is_running:
        has_models = all(parts[0].thing is not None for parts in models.values())
        yield manifest.start(_refused(subject.manifest, settings, has_models=has_models))
    with HeldPorts() as ports:
        planned = manifest.engines(settings, lambda one: plan_here(one, ports))
    yield planned.finding
    if planned.thing is None or subject.is_running:
        return
    if any(process.cores for process in planned.thing.processes):
        weights = {
            name: sum(one.thing.weight_bytes for one in parts if one.thing) for name, parts in models.items()
        }
        yield manifest.engine_memory(settings, weights, available_bytes(host, allowance(host)))
    if on_gpus := [process for process in planned.thing.processes if process.gpus]:
        found = kv_paths(settings, on_gpus, GpuTopology.seen_by(run_tool))
        yield machine.gpu_paths(found)
        pinned = PinnedMemory.of_host(settings, [process.model for process in on_gpus])
        yield machine.pinned_memory(pinned, available_bytes(host, allowance(host)))
    https = [process.http for process in planned.thing.processes if process.http]
    yield manifest.ports(https, check_free)


def _refused(path: Path, settings: Manifest, *, has_models: bool) -> list[str]:
    """has_models: False when a finding has already said that there is none."""
    if settings.deployment.mode == "k8s":
        found = preflight.of_models(settings, sources=has_models)
    else:
        found = preflight.here(settings, sources=has_models)
    return locate(path, found).message.splitlines()
