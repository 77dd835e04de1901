"""The process of vLLM's engine on CPUs, forked from its worker's before that has threads.

vLLM would spawn it: a new Python that imports torch and vLLM again, which takes 6 s of CPU. A fork has them.
But a fork also has the libraries and settings of its worker, and the locks that other threads hold. So the
supervisor gives a worker what vLLM gives to an engine's process (OpenMP's variables: config/plan.py,
LD_PRELOAD: runner/environment.py), and the worker forks before gRPC and others make threads. When vLLM asks
for anything else, it makes the process itself.
"""

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pickle import loads
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.engine import utils as vllm_processes

from llmserve.config.plan_types import CORES_VARIABLE, THREADS_VARIABLE
from llmserve.core.process import importing

_log = logging.getLogger(__name__)

# What an engine's process imports before it reads the model.
_MODULES = (
    "llmserve.engines.connector.connector",
    "llmserve.engines.vllm.cpu_worker",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_model_runner",
)
# Prefixes of variables that the loader and libraries read once, as a process begins.
_READ_ONCE = ("LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "TCMALLOC_", "PYTHON")


class EarlyProcess(ForkProcess):
    """Forked at once. vLLM starts it as it starts others, after `given` has said what it is to run."""

    def __init__(self) -> None:
        orders, self._orders = Pipe(duplex=False)
        super().__init__(target=_follow, args=(orders, self._orders), name="EngineCore")
        self._began_with = _read_once()
        super().start()
        orders.close()
        self._given: tuple[Any, Mapping[str, Any]] | None = None

    def fits(self) -> bool:
        """Whether a process that begins now would begin as this one did, which has not been used yet."""
        return self._given is None and _read_once() == self._began_with

    def given(self, target: Any, arguments: Mapping[str, Any]) -> "EarlyProcess":
        self._given = target, arguments
        return self

    def start(self) -> None:
        """Errors: those of pickle."""
        with self._orders:
            self._orders.send_bytes(ForkingPickler.dumps((self._given, dict(os.environ))))

    def discard(self) -> None:
        """Ends it if it was not started. Idempotent."""
        self._orders.close()


def _read_once() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_READ_ONCE)}


def _follow(orders: Connection, others_end: Connection) -> None:
    others_end.close()  # so that the orders end with the worker
    try:
        (target, arguments), environment = loads(orders.recv_bytes())
    except EOFError:
        return
    _forget_logging()
    _set_environment(environment)
    target(**arguments)


def _forget_logging() -> None:
    """The worker's. vLLM sets up its own."""
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)


def _set_environment(environment: Mapping[str, str]) -> None:
    """Changes no more than it must: vLLM writes the title of its process over the first variables, and does
    not find them where all were set again."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment.items() - os.environ.items())


class _Context:
    """multiprocessing's context for vLLM, whose first process is the early one."""

    def __init__(self, early: EarlyProcess) -> None:
        self._early: EarlyProcess | None = early
        self._context = get_context("spawn")

    def Process(self, *, target: Any, name: str, kwargs: Mapping[str, Any]) -> BaseProcess:  # noqa: N802
        early, self._early = self._early, None
        if early is not None:
            if early.fits():
                return early.given(target, kwargs)
            early.discard()
        _log.info("vLLM starts %s in a process of its own", name)
        return self._context.Process(target=target, name=name, kwargs=kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


@contextmanager
def starting_in(early: EarlyProcess | None) -> Iterator[None]:
    """vLLM starts its engine meanwhile. None: in a process of its own making."""
    if early is None:
        yield
        return
    stock = vllm_processes.get_mp_context
    context = _Context(early)
    setattr(vllm_processes, stock.__name__, lambda: context)
    try:
        yield
    finally:
        setattr(vllm_processes, stock.__name__, stock)


@contextmanager
def made_early() -> Iterator[EarlyProcess | None]:
    """None: the installed vLLM is for GPUs, or there are threads already."""
    with importing():
        for name in _MODULES:
            importlib.import_module(name)
    process = None
    if current_platform.is_cpu() and _is_single_threaded():
        process = EarlyProcess()
    _give_back_cores()
    try:
        yield process
    finally:
        if process is not None:
            process.discard()


def _is_single_threaded() -> bool:
    return len(list(Path("/proc/self/task").iterdir())) == 1


def _give_back_cores() -> None:
    """OpenMP bound this process to the first core of its engine. It may run where its parent does."""
    if os.environ.pop(CORES_VARIABLE, None) is not None:
        os.environ[THREADS_VARIABLE] = "1"
        torch.set_num_threads(1)
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
