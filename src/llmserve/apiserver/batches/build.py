"""From the manifest to the service of batches."""

import time
from pathlib import Path

from starlette.types import ASGIApp

from llmserve.apiserver.batches.call import GateCaller
from llmserve.apiserver.batches.disk import DiskStorage
from llmserve.apiserver.batches.files import FileLimits, FileStore
from llmserve.apiserver.batches.run import RunParts
from llmserve.apiserver.batches.service import BatchService
from llmserve.apiserver.batches.slots import LineSlots
from llmserve.apiserver.batches.storage import BatchStorage
from llmserve.apiserver.batches.store import BatchStore
from llmserve.config.conflict import Conflict
from llmserve.config.schema.batches import Batches
from llmserve.core.errors import LLMServeError
from llmserve.metrics.apiserver import BatchMetrics

FILES_PATH = "/v1/files"
_LOCATION = "batches.location"
# Looking costs a request in a bucket.
_DISK_SECONDS, _BUCKET_SECONDS = 1.0, 5.0
_FORM_BYTES = 1 << 20  # of an upload, around its file
_LINE_BYTES = 64 << 10  # of a line, around its body


def build_batches(
    batches: Batches,
    run_dir: str | None,
    metrics: BatchMetrics,
    gate: ASGIApp,
    max_body_bytes: int,
) -> BatchService | None:
    """max_body_bytes: the most that the gate takes. Returns None when batches are off, or have no place.
    Errors: ManifestError, when the place cannot be used or needs a package."""
    location = batches.location or (run_dir and str(Path(run_dir).absolute() / "batches"))
    if not batches.enabled or not location:
        return None
    is_bucket = "://" in location
    storage = _bucket(batches, location) if is_bucket else _directory(location)
    look_seconds = _BUCKET_SECONDS if is_bucket else _DISK_SECONDS
    limits = FileLimits(batches.max_file_mb << 20, int(batches.tenant_gb * 2**30), batches.keep_seconds)
    parts = RunParts(
        files=FileStore(storage, limits),
        store=BatchStore(storage, batches.keep_seconds),
        caller=GateCaller(gate),
        slots=LineSlots(batches.concurrency),
        metrics=metrics,
        max_lines=batches.max_lines,
        max_line_bytes=max_body_bytes + _LINE_BYTES,
        now=time.time,
        look_seconds=look_seconds,
    )
    return BatchService(storage, parts, poll_seconds=look_seconds)


def streamed_paths(batches: Batches) -> dict[str, int]:
    """Returns the paths whose bodies are not read before their route, and the most bytes of each."""
    return {FILES_PATH: (batches.max_file_mb << 20) + _FORM_BYTES}


def _directory(location: str) -> BatchStorage:
    try:
        return DiskStorage(Path(location))
    except OSError as error:
        raise Conflict.at(f"{location} cannot be used: {error.strerror}", _LOCATION).as_error() from error


def _bucket(batches: Batches, location: str) -> BatchStorage:
    try:
        # Here: a cluster that keeps batches on a disk needs no package for buckets.
        from llmserve.apiserver.batches.bucket import BucketStorage
        from llmserve.buckets.connect import BucketAddress, connect
    except ModuleNotFoundError as error:
        message = f"buckets need a package: {error.msg}; pip install 'obstore>=0.12'"
        raise Conflict.at(message, _LOCATION).as_error() from error
    try:
        return BucketStorage(connect(BucketAddress(location, batches.endpoint or "", batches.region or "")))
    except LLMServeError as error:
        raise Conflict.at(error.message, _LOCATION).as_error() from error
