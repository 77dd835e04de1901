"""The adapters of a host: fetched and checked once, kept on disk and in memory under their digests.

All methods block, some for as long as a download takes, so that loops call them on threads; any thread may.
What a method gives to its caller is held until `release`: no process removes its files, so they can be
loaded. Holds end with the process, even when it is killed.
"""

from dataclasses import dataclass
from pathlib import Path

from llmserve.config.schema import Manifest
from llmserve.core.adapters import BASE_MODEL, AdapterTier, LoraShape
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.source import AdapterSource
from llmserve.models.files import Progress, silent


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """path: a directory with adapter_config.json and adapter_model.safetensors, in which nobody may write.
    tier: DISK or DRAM. size_bytes: of its files."""

    digest: AdapterDigest
    path: Path
    rank: int
    size_bytes: int
    tier: AdapterTier


class AdapterCache:
    """Life: open_adapter_cache -> calls ... -> close (idempotent), which ends all holds."""

    def fetch(
        self, source: AdapterSource, digest: AdapterDigest = BASE_MODEL, progress: Progress = silent
    ) -> AdapterFiles:
        """Brings an adapter to disk, checked, and holds it there. digest: what is expected; when that is on
        this host already, the source is not asked. Errors: InvalidRequest (it is wrong, or this model cannot
        run it; the message names file and tensor), ModelNotFound (there is none, or it no longer has that
        digest): both end alike at each try. Unavailable (its store or the hub is away, the disk is full) and
        DeadlineExceeded: another try may do."""
        raise NotImplementedError

    def bring_to_memory(self, digest: AdapterDigest) -> AdapterFiles:
        """Copies an adapter from disk to memory and holds it there, too. Errors: NotFound (it is not on disk,
        or was damaged there and is removed: fetch it again), Unavailable (no room, or there is no memory for
        adapters)."""
        raise NotImplementedError

    def find(self, digest: AdapterDigest) -> AdapterFiles | None:
        """Returns the nearest place of an adapter, which is not held for it. Within a millisecond."""
        raise NotImplementedError

    def hold(self, digest: AdapterDigest, tier: AdapterTier) -> AdapterFiles:
        """Holds what is there, and counts as a use for LRU. Idempotent: one `release` ends it. Errors:
        NotFound."""
        raise NotImplementedError

    def release(self, digest: AdapterDigest, tier: AdapterTier) -> None:
        """It may be removed when room is needed, unless other processes hold it. Ignores what is not
        held."""
        raise NotImplementedError

    def remove(self, digest: AdapterDigest, tier: AdapterTier = AdapterTier.DISK) -> None:
        """Ends this process's hold and deletes the files: DRAM: those in memory; DISK: those in memory and on
        disk. What other processes hold stays; the last one that removes it deletes it. Ignores an unknown
        one."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def open_adapter_cache(
    manifest: Manifest, shape: LoraShape, model_dir: Path | None, cache_dir: Path | None = None
) -> AdapterCache:
    """Removes what killed processes left half done. manifest: has the limits and the S3 endpoint. shape: of
    the engine; adapters are checked against it. model_dir: the base model, whose weights have the shapes that
    adapters must fit; None: a simulated engine, which fits all. cache_dir: default_cache_dir() without it.
    Errors: OSError when the directories cannot be made, LLMServeError."""
    raise NotImplementedError
