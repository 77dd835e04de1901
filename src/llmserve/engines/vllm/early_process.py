"""The process of vLLM's engine, forked from its worker's before that has threads.

vLLM would spawn it: a new Python that imports torch and vLLM again, which takes 8 s of CPU. A fork has them.
But it inherits locks that other threads hold, and gRPC has threads. So it is forked before there are any, and
waits for what it is to run. Torch and OpenMP read settings as they are imported: the compiler is switched off
before (vLLM's small functions would be compiled otherwise), and the threads are set by hand.
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
from pickle import loads
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.engine import utils as vllm_processes

from llmserve.engines.vllm.environment import compile_nothing

_log = logging.getLogger(__name__)

# What an engine's process imports before it reads the model.
_MODULES = (
    "llmserve.engines.connector.connector",
    "llmserve.engines.vllm.cpu_worker",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_model_runner",
)
_THREADS, _PLACES = "OMP_NUM_THREADS", "OMP_PLACES"


class EarlyProcess(ForkProcess):
    """Forked at once. vLLM starts it as it starts others, after `given` has said what it is to run."""

    def __init__(self) -> None:
        compile_nothing()
        for name in _MODULES:
            importlib.import_module(name)
        orders, self._orders = Pipe(duplex=False)
        super().__init__(target=_follow, args=(orders, self._orders), name="EngineCore")
        super().start()
        orders.close()
        self._given: tuple[Any, Mapping[str, Any]] | None = None

    def given(self, target: Any, arguments: Mapping[str, Any]) -> "EarlyProcess":
        self._given = target, arguments
        return self

    def start(self) -> None:
        """Errors: those of pickle."""
        self._orders.send_bytes(ForkingPickler.dumps((self._given, dict(os.environ))))

    def discard(self) -> None:
        """Ends it if it was given nothing. Idempotent."""
        self._orders.close()


def _follow(orders: Connection, others_end: Connection) -> None:
    others_end.close()  # so that the orders end with the worker
    try:
        (target, arguments), environment = loads(orders.recv_bytes())
    except EOFError:
        return
    _set_environment(environment)
    _set_threads()
    target(**arguments)


def _set_environment(environment: Mapping[str, str]) -> None:
    """Changes no more than it must: vLLM writes the title of its process over the first variables, and does
    not find them where all were set again."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment.items() - os.environ.items())


def _set_threads() -> None:
    """As OpenMP would read it. vLLM names one place for all threads: the cores that they share."""
    if threads := os.environ.get(_THREADS):
        torch.set_num_threads(int(threads))
    if places := os.environ.get(_PLACES):
        os.sched_setaffinity(0, {int(core) for core in places.strip("{}").split(",")})


class _Context:
    """multiprocessing's context for vLLM, whose first process is the early one."""

    def __init__(self, early: EarlyProcess) -> None:
        self._early: EarlyProcess | None = early
        self._context = get_context("spawn")

    def Process(self, *, target: Any, name: str, kwargs: Mapping[str, Any]) -> BaseProcess:  # noqa: N802
        early, self._early = self._early, None
        if early is None:
            return self._context.Process(target=target, name=name, kwargs=kwargs)
        return early.given(target, kwargs)

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
    """None: the installed vLLM is for GPUs, and a fork could not use them."""
    if not current_platform.is_cpu():
        yield None
        return
    process = EarlyProcess()
    try:
        yield process
    finally:
        process.discard()
