"""`llmserve profile`: what a process of a running cluster spends its time with."""

import argparse
import asyncio
import gzip
import json
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio

from llmserve.cli.cluster import FoundCluster, add_cluster, find_cluster
from llmserve.cli.command import EXIT_OK, Command, positive
from llmserve.core.errors import LLMServeError, NotFound
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.gen.llmserve.v1 import worker_pb2, worker_pb2_grpc
from llmserve.rpc.status import from_grpc

_WORKERS = ("prefill", "decode", "aggregated")
_WRITE_SECONDS = 300.0  # for the record itself, beyond the time that is recorded
_SUMMARY_ROWS = 15
_NAME_LETTERS = 80
_SAMPLES_PER_SECOND = 100

_ABOUT = """\
Records a process of the cluster that runs here (or of -f, --run-dir), while it serves, and prints what took
most time. Of a worker, torch's profiler records the operations of its engine: each rank writes a trace for
https://ui.perfetto.dev, and its steps stand still while it writes. Of any other process, and of a worker with
--python, py-spy samples the Python code: a file of stacks for https://speedscope.app.

  llmserve profile decode-0                     5 seconds of an engine
  llmserve profile router-0 --seconds 30        the Python code of a router
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    parser.add_argument("name", metavar="NAME", help="of the process, as `llmserve status` shows it")
    parser.add_argument(
        "--seconds", type=positive, default=5.0, metavar="N", help="record for so long (default: %(default)g)"
    )
    parser.add_argument("--python", action="store_true", help="of a worker, the Python code of its process")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where files go (default: here)"
    )


def _run(options: argparse.Namespace) -> int:
    cluster = find_cluster(options)
    role = _role(cluster, options.name)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"recording {options.name} for {options.seconds:g} s", flush=True)
    if role["role"] in _WORKERS and not options.python:
        pieces = _ask(role["listen"], cluster.credentials, options.seconds)
        files = asyncio.run(save(pieces, options.out))
        summary = "\n".join(summary_of_trace(files[0])) if files else "the engine wrote no trace"
    else:
        summary, files = _sample(role, options.seconds, options.out)
    print(summary)
    print("\n".join(f"written: {file}" for file in files))
    return EXIT_OK


def _role(cluster: FoundCluster, name: str) -> Mapping[str, Any]:
    """Errors: NotFound."""
    roles = {str(role["name"]): role for role in cluster.state.roles}
    if name not in roles:
        raise NotFound(f"no process {name} in {cluster.state.name}: there are {', '.join(roles)}")
    return roles[name]


# -- what an engine computes


async def _ask(
    address: str, credentials: Credentials, seconds: float
) -> AsyncIterator[worker_pb2.ProfilePiece]:
    """Errors: those of Worker.Profile."""
    async with open_channel(address, credentials, CallerRole.WORKER) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
        request = worker_pb2.ProfileRequest(seconds=seconds)
        try:
            async for piece in stub.Profile(request, timeout=seconds + _WRITE_SECONDS):
                yield piece
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error


async def save(pieces: AsyncIterator[worker_pb2.ProfilePiece], out: Path) -> list[Path]:
    """Writes the files, each whole or not at all, and returns their paths. Errors: LLMServeError for a file
    that cannot be written, those of the pieces."""
    parts = dict[Path, Path]()
    try:
        async for piece in pieces:
            path = out / Path(piece.file).name
            mode = "ab" if path in parts else "wb"  # a run that was killed may have left a part
            parts[path] = path.with_name(f"{path.name}.part")
            with parts[path].open(mode) as file:
                file.write(piece.data)
        for path, part in parts.items():
            part.rename(path)
    except OSError as error:
        raise LLMServeError(f"{out}: a profile cannot be written: {error}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return list(parts)


class TraceSpan(NamedTuple):
    """An operation of a trace. place: its thread, or its stream on a GPU. Times in microseconds."""

    place: str
    start: float
    end: float
    name: str
    on_gpu: bool


_ON_CPU = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


def summary_of_trace(path: Path) -> Iterator[str]:
    """Yields the operations that took most time on GPUs and on the CPU, without those that they began, each
    with its share. path: a trace, compressed."""
    spans: list[TraceSpan] = json.loads(gzip.decompress(path.read_bytes()), object_hook=_without_rest)
    if not spans:
        yield "nothing was computed: no request ran here meanwhile"
    for device, on_gpu in (("GPU", True), ("CPU", False)):
        times, calls = own_times(span for span in spans if span.on_gpu is on_gpu)
        total = sum(times.values())
        if times:
            yield f"the {device} computed for {total / 1e6:.2f} s; most of it"
        for name in sorted(times, key=times.__getitem__, reverse=True)[:_SUMMARY_ROWS]:
            yield f"{100 * times[name] / total:5.1f} %  {calls[name]:7d} x  {name[:_NAME_LETTERS]}"


def _without_rest(fields: dict[str, Any]) -> Any:
    """Keeps the operations of a trace, whose text is mostly details of them."""
    if "traceEvents" in fields:
        return [event for event in fields["traceEvents"] if event is not None]
    if fields.get("cat") not in _ON_CPU + _ON_GPU:
        return None
    place, start = f"{fields['pid']} {fields['tid']}", fields["ts"]
    return TraceSpan(place, start, start + fields["dur"], fields["name"], fields["cat"] in _ON_GPU)


def own_times(spans: Iterable[TraceSpan]) -> tuple[dict[str, float], Counter[str]]:
    """Returns the time of each operation without those that began in it, and how often it ran."""
    times, calls = defaultdict[str, float](float), Counter[str]()
    around: list[TraceSpan] = []
    for span in sorted(spans, key=lambda one: (one.place, one.start, -one.end)):
        while around and (around[-1].place != span.place or around[-1].end <= span.start):
            around.pop()
        if around:
            times[around[-1].name] -= span.end - span.start
        times[span.name] += span.end - span.start
        calls[span.name] += 1
        around.append(span)
    return times, calls


# -- what its Python code does


def _sample(role: Mapping[str, Any], seconds: float, out: Path) -> tuple[str, list[Path]]:
    """Errors: LLMServeError when there is no py-spy, or it may not look into the process."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = str(beside) if beside.exists() else shutil.which("py-spy")
    if tool is None:
        raise LLMServeError("py-spy is not installed: pip install py-spy")
    path, whole_seconds = (
        out / f"{role['name']}-{time.strftime('%Y%m%d-%H%M%S')}.folded",
        max(1, round(seconds)),
    )
    # Without --gil, threads that wait count as well.
    what = ("record", "--gil", "--pid", str(role["pid"]), "--rate", f"{_SAMPLES_PER_SECOND}")
    rest = ("--duration", f"{whole_seconds}", "--format", "raw", "--output", str(path))
    done = subprocess.run((tool, *what, *rest), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise LLMServeError(f"py-spy cannot record {role['name']}, process {role['pid']}: {why[0]}")
    return "\n".join(summary_of(path.read_text(), whole_seconds * _SAMPLES_PER_SECOND)), [path]


def summary_of(folded: str, taken: int) -> Iterator[str]:
    """Yields the functions that ran in most samples, each with its share. folded: lines of a stack and the
    number of its samples. taken: samples in all; in the others no Python code ran."""
    counts: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, number = line.rpartition(" ")
        counts[stack.rpartition(";")[2]] += int(number)
    total = counts.total()
    yield f"Python code ran in {total} of {taken} samples{'; most of them in' if total else ''}"
    for function, samples in counts.most_common(_SUMMARY_ROWS):
        yield f"{100 * samples / total:5.1f} %  {function}"


COMMAND = Command("profile", "record what a process spends its time with", _ABOUT, _configure, _run)
