"""What every role's process does alike: flags, logs, the ready line, signals, the stop.

The process prints one line `LLMSERVE_READY <name>` when it is ready (before it, perhaps
`LLMSERVE_PROGRESS <text>` lines) and exits 0 after an ordered stop, 1 when it could not start or
go on; then a line `LLMSERVE_FAILED <json>` has the reason (`ProcessFailure`). The first SIGTERM or SIGINT
begins the ordered stop; a second one exits at once.
"""

import argparse
import asyncio
import atexit
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import uvloop

from llmserve.config.environment import GIVEN, engine_variables, inherited, note
from llmserve.config.schema import Manifest, Observability
from llmserve.core.errors import LLMServeError, ManifestError, ModelNotFound
from llmserve.core.logs import HumanFormatter, JsonFormatter, vllm_logging

_log = logging.getLogger(__name__)

FAILED_WORD = "LLMSERVE_FAILED"
LOG_LEVEL_VARIABLE = "LLMSERVE_LOG_LEVEL"
VLLM_LOGGING_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_FORCED_EXIT_CODE = 130
_WILDCARDS = frozenset({"0.0.0.0", "[::]", "::", ""})


@dataclass(frozen=True, slots=True)
class ProcessFailure:
    """Why a process could not start or go on. lasts: another try would end alike. key: of the manifest, where
    the message begins with one."""

    message: str
    lasts: bool
    key: tuple[str | int, ...] = ()

    @classmethod
    def of(cls, error: LLMServeError) -> "ProcessFailure":
        key = error.key if isinstance(error, ManifestError) else ()
        return cls(error.message, isinstance(error, ManifestError | ModelNotFound), key)

    @classmethod
    def read(cls, text: str) -> "ProcessFailure":
        """Of the line. Errors: ValueError, TypeError, KeyError."""
        told = json.loads(text)
        return cls(str(told["message"]), told["lasts"] is True, tuple(told["key"]))


class Role(Protocol):
    """Life: start (once; Errors: StartFailed, ManifestError) -> wait -> aclose (idempotent, also after a
    failed start)."""

    async def start(self) -> None: ...

    async def wait(self) -> None:
        """Returns, or raises, only when the role cannot go on."""

    async def aclose(self) -> None:
        """The ordered stop: stop admitting, drain, release, close."""


def common_flags(role: str, *, listens: bool = True) -> argparse.ArgumentParser:
    """listens: the role has a gRPC service."""
    parser = argparse.ArgumentParser(prog=f"python -m llmserve.{role}", description=f"LLMServe {role}")
    parser.add_argument("--manifest", required=True, help="the manifest of the cluster (YAML)")
    parser.add_argument("--name", required=True, help="unique name of this process, such as decode-0")
    if listens:
        parser.add_argument("--listen", required=True, help="host:port of its gRPC service")
    parser.add_argument("--metrics-port", type=int, default=0, help="port of /metrics; 0: none")
    parser.add_argument("--run-dir", help="directory for files of this run")
    return parser


def addresses(text: str) -> tuple[str, ...]:
    """Of a flag: HOST:PORT,..."""
    return tuple(filter(None, text.split(",")))


def add_kvmanagers(parser: argparse.ArgumentParser, without: str) -> None:
    """--kvmanager, a tuple of addresses. without: what it means when there is none."""
    parser.add_argument(
        "--kvmanager",
        type=addresses,
        default=(),
        metavar="HOST:PORT,...",
        help=f"of each KV manager, always in the same order: blocks are placed by it; {without}",
    )


def reached_at(listen: str) -> str:
    """The host that peers reach a process at which listens there: for what else it listens with. Where it
    listens on all addresses, which one is theirs cannot be known: loopback."""
    host = listen.rpartition(":")[0]
    return "127.0.0.1" if host in _WILDCARDS else host


def configure_logging(settings: Observability, process: str) -> None:
    """To stderr, lines of this process. The environment variable wins over the manifest's level. Before vLLM
    is imported: it reads how it is to log then."""
    level = os.environ.get(LOG_LEVEL_VARIABLE, settings.log_level).upper()
    is_json = settings.log_format == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if is_json else HumanFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if is_json:
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread
        sys.unraisablehook = _log_unraisable
        _configure_vllm(process, level)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(kind.__module__).critical("uncaught: %s", error, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return  # as Python itself: that is how a thread may end
    error = args.exc_value or args.exc_type()
    name = args.thread.name if args.thread else "a thread"
    trace = (args.exc_type, error, args.exc_traceback)
    logging.getLogger(args.exc_type.__module__).critical("uncaught in %s: %s", name, error, exc_info=trace)


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    error = args.exc_value or args.exc_type()
    trace = (args.exc_type, error, args.exc_traceback)
    what = args.err_msg or "ignored"
    _log.error("%s: %r: %s", what, args.object, error, exc_info=trace)


def _configure_vllm(process: str, level: str) -> None:
    """Through a file, the way vLLM passes it to the processes of its engine. Who has set one knows better."""
    if VLLM_LOGGING_VARIABLE in os.environ:
        return
    with tempfile.NamedTemporaryFile("w", prefix="llmserve-logging-", suffix=".json", delete=False) as file:
        json.dump(vllm_logging(process, level), file)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    os.environ[VLLM_LOGGING_VARIABLE] = file.name


def own_environment(manifest: Manifest) -> None:
    """Leaves in this process's environment what a process of the cluster may have, whoever started it, and
    adds `engine.env`. Before vLLM is imported, which reads the rest."""
    environment = inherited(os.environ, manifest, GIVEN)
    if environment.ignored:
        _log.warning("%s", note(environment.ignored))
    for name in os.environ.keys() - environment.kept.keys():
        del os.environ[name]
    os.environ.update(engine_variables(manifest))


def set_log_level(level: str) -> None:
    """From now on, whatever the environment said at the start."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if number != logging.getLogger().level:
        logging.getLogger().setLevel(number)
        _log.log(number, "the log level is %s from now on", level)


def report_progress(text: str) -> None:
    """Tells the runner what the start is waiting for."""
    print(f"LLMSERVE_PROGRESS {text}", flush=True)


def report_failure(name: str, error: LLMServeError) -> None:
    """Tells the runner and the log why this process ends."""
    print(f"{FAILED_WORD} {json.dumps(asdict(ProcessFailure.of(error)))}", flush=True)
    _log.error("%s: failed: %s", name, error.message)


def run_role(name: str, build: Callable[[], Awaitable[Role]]) -> int:
    """Runs a role to its end and returns the exit code. `build` runs inside the loop."""
    exit_code: int = uvloop.run(_live(name, build))
    return exit_code


async def _live(name: str, build: Callable[[], Awaitable[Role]]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop)
    try:
        role = await build()
    except LLMServeError as error:
        return _failed(name, error)
    try:
        return await _start_and_wait(name, role, stop)
    finally:
        await role.aclose()
        _log.info("%s: stopped", name)


async def _start_and_wait(name: str, role: Role, stop: asyncio.Event) -> int:
    life = asyncio.create_task(_ready_then_wait(name, role), name=f"{name}.life")
    stopped = asyncio.create_task(stop.wait(), name=f"{name}.stop")
    try:
        await asyncio.wait((life, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not life.done():
            _log.info("%s: stopping", name)
            return 0
        return _failed(name, life.exception() or LLMServeError("ended without being asked to"))
    finally:
        life.cancel()
        stopped.cancel()
        await asyncio.gather(life, stopped, return_exceptions=True)


async def _ready_then_wait(name: str, role: Role) -> None:
    await role.start()
    print(f"LLMSERVE_READY {name}", flush=True)
    _log.info("%s: ready", name)
    await role.wait()


def _failed(name: str, error: BaseException) -> int:
    if isinstance(error, LLMServeError):
        report_failure(name, error)
    else:
        _log.error("%s: failed", name, exc_info=error)
    return 1


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(_FORCED_EXIT_CODE)
    stop.set()
