"""What the process of every role does: flags, logs, the ready line, signals, the stop.

The process prints one line `LLMSERVE_READY <name>` when it is ready, and perhaps `LLMSERVE_PROGRESS <text>`
lines before it. It exits 0 after an ordered stop, and 1 when it could not start or go on; then a line
`LLMSERVE_FAILED <json>` has the reason (`ProcessFailure`). The first SIGTERM or SIGINT begins the ordered
stop; a second one exits at once, with 130.
"""

import argparse
import asyncio
import atexit
import json
import logging
import os
import resource
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
from llmserve.config.load import parse_manifest, read_manifest
from llmserve.config.schema import Manifest, Observability
from llmserve.core.addresses import host_of, with_brackets
from llmserve.core.errors import LLMServeError, ManifestError, ModelNotFound
from llmserve.core.logs import HumanFormatter, JsonFormatter, vllm_logging
from llmserve.core.process import settle_collector
from llmserve.rpc.audit import open_audit

_log = logging.getLogger(__name__)

FAILED_WORD = "LLMSERVE_FAILED"
CORE_FILES_VARIABLE = "LLMSERVE_CORE_FILES"
LOG_LEVEL_VARIABLE = "LLMSERVE_LOG_LEVEL"
VLLM_LOGGING_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_FORCED_EXIT_CODE = 130
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})


@dataclass(frozen=True, slots=True)
class ProcessFailure:
    """Why a process could not start or go on. lasts: another try would fail in the same way. key: the
    manifest's key that the message begins with, if any."""

    message: str
    lasts: bool
    key: tuple[str | int, ...] = ()

    @classmethod
    def of(cls, error: LLMServeError) -> "ProcessFailure":
        key = error.key if isinstance(error, ManifestError) else ()
        return cls(error.message, isinstance(error, ManifestError | ModelNotFound), key)

    @classmethod
    def read(cls, text: str) -> "ProcessFailure":
        """Reads the text of a LLMSERVE_FAILED line. Errors: ValueError, TypeError, KeyError."""
        fields = json.loads(text)
        return cls(str(fields["message"]), fields["lasts"] is True, tuple(fields["key"]))


class Role(Protocol):
    """Life: start (once; Errors: StartFailed, ManifestError) -> wait -> aclose (idempotent, also after a
    failed start)."""

    async def start(self) -> None: ...

    async def wait(self) -> None:
        """Returns when the role has ended in order by itself, as a drained worker does. Raises when it cannot
        go on."""

    async def aclose(self) -> None:
        """The ordered stop: stop admitting, drain, release, close."""


def common_flags(role: str, *, listens: bool = True) -> argparse.ArgumentParser:
    """listens: the role has a gRPC service."""
    parser = argparse.ArgumentParser(prog=f"python -m llmserve.{role}", description=f"LLMServe {role}")
    parser.add_argument("--manifest", required=True, help="the manifest of the cluster (YAML)")
    parser.add_argument("--name", required=True, help="unique name of this process, such as decode-0")
    if listens:
        parser.add_argument(
            "--listen", required=True, type=with_brackets, help="host:port of its gRPC service"
        )
    parser.add_argument("--metrics-port", type=int, default=0, help="port of /metrics; 0: none")
    parser.add_argument("--run-dir", help="directory for files of this run")
    return parser


def addresses(text: str) -> tuple[str, ...]:
    """Reads the value of a flag: HOST:PORT,..."""
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
    """Returns the host, without brackets, that peers use to reach a process that listens at `listen`. For a
    wildcard address, which does not say which of the host's addresses that is, returns loopback."""
    host = host_of(listen)
    return "127.0.0.1" if host in _WILDCARDS else host


def open_manifest(flags: argparse.Namespace) -> tuple[Manifest, str]:
    """Reads the manifest of the cluster, and opens the logs of this process as it says. Returns it, and its
    text. flags: as of common_flags. Errors: ManifestError, StartFailed."""
    text = read_manifest(flags.manifest)
    manifest = parse_manifest(text, flags.manifest)
    configure_logging(manifest.observability, flags.name)
    _configure_audit(manifest, flags)
    return manifest, text


def configure_logging(settings: Observability, process: str) -> None:
    """Sends log lines to stderr. LLMSERVE_LOG_LEVEL overrides the manifest's level. Called before vLLM is
    imported, which reads its own logging configuration then."""
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


def log_folder(manifest: Path, run_dir: Path, log_dir: str | None) -> Path:
    """log_dir: observability.log_dir; a relative path is beside the manifest."""
    return beside(manifest, log_dir) if log_dir else run_dir / "logs"


def beside(manifest: Path, path: str) -> Path:
    """Returns where a path of the manifest is: a relative one is beside the manifest."""
    return manifest.absolute().parent / Path(path).expanduser()


def _configure_audit(manifest: Manifest, flags: argparse.Namespace) -> None:
    """Opens the audit log of this process in the cluster's log directory; in a pod it is part of the log.
    Errors: StartFailed."""
    settings, folder = manifest.observability, None
    if flags.run_dir and manifest.deployment.mode == "local":
        folder = log_folder(Path(flags.manifest), Path(flags.run_dir), settings.log_dir)
    open_audit(folder, flags.name, settings.log_file_mib << 20, on=manifest.security.audit)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(kind.__module__).critical("uncaught: %s", error, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return  # a thread may end that way; Python ignores it too
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
    """Writes vLLM's logging configuration into a file, which it passes on to the processes of its engine. A
    file that is configured already stays."""
    if VLLM_LOGGING_VARIABLE in os.environ:
        return
    with tempfile.NamedTemporaryFile("w", prefix="llmserve-logging-", suffix=".json", delete=False) as file:
        json.dump(vllm_logging(process, level), file)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    os.environ[VLLM_LOGGING_VARIABLE] = file.name


def own_environment(manifest: Manifest) -> None:
    """Removes from this process's environment what a process of the cluster must not have, and adds
    `engine.env`. Called before vLLM is imported, which reads the rest."""
    environment = inherited(os.environ, manifest, GIVEN)
    if environment.ignored:
        _log.warning("%s", note(environment.ignored))
    for name in os.environ.keys() - environment.kept.keys():
        del os.environ[name]
    os.environ.update(engine_variables(manifest))


def set_log_level(level: str) -> None:
    """Changes the level while the process runs, whatever the environment set at the start."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if number != logging.getLogger().level:
        logging.getLogger().setLevel(number)
        _log.log(number, "the log level is %s from now on", level)


def report_progress(text: str) -> None:
    """Reports to the supervisor what the start is waiting for."""
    print(f"LLMSERVE_PROGRESS {text}", flush=True)


def failed(name: str, error: BaseException) -> int:
    """Reports to the supervisor and the log why this process ends. Returns its exit code."""
    if isinstance(error, LLMServeError):
        print(f"{FAILED_WORD} {json.dumps(asdict(ProcessFailure.of(error)))}", flush=True)
        _log.error("%s: failed: %s", name, error.message)
    else:
        _log.error("%s: failed", name, exc_info=error)
    return 1


def leave_no_core_files() -> None:
    """From now on, neither this process nor its children leave core files, which would hold prompts and
    keys. `run_role` sees to it too, for the children that come after it."""
    if os.environ.get(CORE_FILES_VARIABLE) != "1":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_role(name: str, build: Callable[[], Awaitable[Role]]) -> int:
    """Runs a role to its end and returns the exit code. `build` runs inside the loop."""
    leave_no_core_files()
    exit_code: int = uvloop.run(_live(name, build))
    return exit_code


async def _live(name: str, build: Callable[[], Awaitable[Role]]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop)
    try:
        role = await build()
    except LLMServeError as error:
        return failed(name, error)
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
        error = life.exception()
        return failed(name, error) if error is not None else 0
    finally:
        life.cancel()
        stopped.cancel()
        await asyncio.gather(life, stopped, return_exceptions=True)


async def _ready_then_wait(name: str, role: Role) -> None:
    await role.start()
    settle_collector()
    print(f"LLMSERVE_READY {name}", flush=True)
    _log.info("%s: ready", name)
    await role.wait()


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(_FORCED_EXIT_CODE)
    stop.set()
