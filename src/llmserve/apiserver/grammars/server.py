"""The process that compiles grammars, from the inside. GrammarProcess is its view from the apiserver.

Its input are lines of JSON: tasks, and models `{"model": 1, "config": "…"}` (vLLM's configuration, as base64
of a pickle), which have to come before their tasks; without a configuration, the model is forgotten. It ends
with its input.
"""

import base64
import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from llmserve.apiserver.grammars.forks import ForkLimits, ForkServer, Task
from llmserve.core.process import importing
from llmserve.engines.vllm.environment import set_apiserver_environment

_CHANNEL = 0
_ARENA_MAX, _ARENAS = -8, 2  # of glibc's mallopt: each arena is memory that a child would count as its own


class ServerProcess(NamedTuple):
    """A server that was begun. channel: takes the tasks and gives the answers. It is never inherited."""

    process: BaseProcess
    channel: socket.socket


def fork_server(cpu_seconds: int) -> ServerProcess:
    """Begins a server that has what this process has imported, which costs neither time nor memory again.
    Call it before this process has threads: a lock that one of them holds would stay locked in the copy."""
    return _begin(multiprocessing.get_context("fork"), cpu_seconds)


def spawn_server(cpu_seconds: int) -> ServerProcess:
    """Begins a server in a new interpreter, which imports vLLM: that takes six seconds of CPU."""
    return _begin(multiprocessing.get_context("spawn"), cpu_seconds)


def _begin(context: Any, cpu_seconds: int) -> ServerProcess:
    own, other = socket.socketpair()
    with other:
        process = context.Process(target=serve, args=(other, cpu_seconds), name="grammars", daemon=True)
        process.start()
    return ServerProcess(process, own)


def serve(channel: socket.socket, cpu_seconds: int) -> None:
    """Serves until the channel is closed, and does not return."""
    _leave_parent(channel)
    set_apiserver_environment()
    # The limits are those of the child, which count its own time only.
    os.environ["VLLM_REGEX_COMPILATION_TIMEOUT_S"] = "0"
    # After the environment, which vLLM reads when it is imported.
    with importing():
        from llmserve.apiserver.grammars.compiler import GrammarCompiler

    compilers: dict[int, GrammarCompiler] = {}  # by model

    def prepare(line: Mapping[str, Any]) -> None:
        compilers.pop(line["model"], None)
        if line["config"]:
            config = pickle.loads(base64.b64decode(line["config"]))
            compilers[line["model"]] = GrammarCompiler(config)

    def problem_of(task: Task) -> str:
        return compilers[task["model"]].problem_of(task)

    os.write(_CHANNEL, b"{}\n")
    limits = ForkLimits.of(cpu_seconds)
    ForkServer(problem_of, limits, tasks=_CHANNEL, answers=_CHANNEL, prepare=prepare).serve()
    os._exit(0)  # nothing is left to be tidied up, and vLLM's modules take seconds for it


def _leave_parent(channel: socket.socket) -> None:
    """Gives up what a copy has of the process that it was copied from: its signals, files and sockets. The
    numbers of the files stay taken, since an object that is not needed any more closes its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the apiserver decides when this ends
    os.dup2(channel.detach(), _CHANNEL)
    os.dup2(2, 1)  # what libraries print goes to the log
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in (0, 1, 2, nothing):
            os.dup2(nothing, number, inheritable=False)
    ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS)
