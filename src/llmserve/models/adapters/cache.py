"""The adapters of a host: fetched and checked once, kept on disk and in DRAM under their digests.

All methods block, some for as long as a download takes, so that loops call them on threads; any thread may.
What a method gives to its caller is held until `release`: no process removes its files, so they can be
loaded. Holds end with the process, even when it is killed.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmserve.buckets.connect import BucketAddress
from llmserve.config.adapter_source import AdapterSource, AllowedSources, parse_adapter_source
from llmserve.config.lora import lora_of
from llmserve.config.schema import Manifest
from llmserve.config.schema.lora import Lora
from llmserve.core.adapters import BASE_MODEL, AdapterTier, LoraShape
from llmserve.core.errors import InvalidRequest, ModelNotFound, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.base_weights import BaseWeights, read_base_weights
from llmserve.models.adapters.check import AdapterRules, check_layout, check_numbers
from llmserve.models.adapters.folder import AdapterFolder
from llmserve.models.adapters.peft import CONFIG_NAME
from llmserve.models.adapters.places import AdapterPlace, copy_files, place_of, sizes_of
from llmserve.models.adapters.record import AdapterRecord, make_record
from llmserve.models.files import Progress, silent
from llmserve.models.resolve import default_cache_dir

DISK_VARIABLE = "LLMSERVE_ADAPTER_DISK"
DRAM_VARIABLE = "LLMSERVE_ADAPTER_DRAM"
_SHARED_MEMORY = Path("/dev/shm")
_GIB = 1 << 30
_RECORD_BYTES = 1 << 16  # for the record and a configuration that is written anew


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """path: a directory with adapter_config.json and adapter_model.safetensors, in which nobody may write.
    tier: DISK or DRAM. size_bytes: of its files."""

    digest: AdapterDigest
    path: Path
    rank: int
    size_bytes: int
    tier: AdapterTier


@dataclass(frozen=True, slots=True)
class AdapterOrigins:
    """Where adapters may come from. bucket: endpoint and region of sources in buckets."""

    allowed: AllowedSources
    bucket: BucketAddress

    def place(self, source: AdapterSource) -> AdapterPlace:
        """Errors: those of the place."""
        return place_of(source, self.bucket, self.allowed.real_roots(source))


class AdapterCache:
    """Life: open_adapter_cache -> calls ... -> close (idempotent), which ends all holds."""

    def __init__(
        self, origins: AdapterOrigins, rules: AdapterRules, tiers: Mapping[AdapterTier, AdapterFolder]
    ) -> None:
        """tiers: DISK, and DRAM unless there is no DRAM for adapters."""
        self._origins = origins
        self._rules = rules
        self._tiers = dict(tiers)
        self._disk = tiers[AdapterTier.DISK]

    def fetch(
        self, source: AdapterSource, digest: AdapterDigest = BASE_MODEL, progress: Progress = silent
    ) -> AdapterFiles:
        """Brings an adapter to disk, checked, and holds it there. digest: what is expected; when that is on
        this host already, the source is not asked. Errors: InvalidRequest (it is wrong, or this model cannot
        run it; the message names file and tensor), ModelNotFound (there is none, or it no longer has that
        digest): both end alike at each try. Unavailable (its store or the hub is away, the disk is full) and
        DeadlineExceeded: another try may do."""
        with suppress(NotFound):
            return self.reuse(source, digest)
        with _explained(source), self._disk.making(digest or str(source), progress):
            with suppress(NotFound):  # another process was faster
                return self.reuse(source, digest)
            return self._files(self._fetched(source, digest, progress), AdapterTier.DISK)

    def reuse(self, source: AdapterSource, digest: AdapterDigest) -> AdapterFiles:
        """Holds what is on disk already, within milliseconds. It is checked again: another cluster may have
        fetched it, or this one before its limits were changed. source: for messages. Errors: NotFound,
        InvalidRequest, Unavailable."""
        with _explained(source):
            found = self.hold(digest, AdapterTier.DISK)
            try:
                check_layout(found.path, self._rules)
            except BaseException:
                self.release(digest, AdapterTier.DISK)
                raise
            return found

    def bring_to_dram(self, digest: AdapterDigest) -> AdapterFiles:
        """Copies an adapter from disk to DRAM and holds it there, too. Errors: NotFound (it is not on disk,
        or was damaged there and is removed: fetch it again), Unavailable (no room, or there is no DRAM for
        adapters)."""
        dram = self._tiers.get(AdapterTier.DRAM)
        if dram is None:
            raise Unavailable("there is no DRAM for adapters: lora.dram_gb is 0")
        with suppress(NotFound):
            return self.hold(digest, AdapterTier.DRAM)
        with _explained(digest), dram.making(digest, silent):
            with suppress(NotFound):  # another process was faster
                return self.hold(digest, AdapterTier.DRAM)
            return self._files(self._copied(digest, dram), AdapterTier.DRAM)

    def find(self, digest: AdapterDigest) -> AdapterFiles | None:
        """Returns the nearest place of an adapter, within a millisecond. The adapter is not held."""
        for tier in (AdapterTier.DRAM, AdapterTier.DISK):
            folder = self._tiers.get(tier)
            record = folder.find(digest) if folder else None
            if record is not None:
                return self._files(record, tier)
        return None

    def hold(self, digest: AdapterDigest, tier: AdapterTier) -> AdapterFiles:
        """Holds what is there, and counts as a use for LRU. Idempotent: one `release` ends it. Errors:
        NotFound."""
        if (folder := self._tiers.get(tier)) is None:
            raise NotFound(f"adapter {digest} is not in {tier}")
        return self._files(folder.hold(digest), tier)

    def release(self, digest: AdapterDigest, tier: AdapterTier) -> None:
        """Ends a hold: the adapter may be removed when room is needed, unless other processes hold it.
        Ignores one that is not held."""
        if (folder := self._tiers.get(tier)) is not None:
            folder.release(digest)

    def remove(self, digest: AdapterDigest) -> None:
        """Ends this process's holds and deletes the files in each tier. What other processes hold stays; the
        last one that removes it deletes it. Ignores an unknown one."""
        for folder in self._tiers.values():
            folder.remove(digest)

    def close(self) -> None:
        for folder in self._tiers.values():
            folder.close()

    # -- inside

    def _files(self, record: AdapterRecord, tier: AdapterTier) -> AdapterFiles:
        path = self._tiers[tier].path / record.digest
        return AdapterFiles(record.digest, path, record.rank, record.size_bytes, tier)

    def _fetched(self, source: AdapterSource, wanted: AdapterDigest, progress: Progress) -> AdapterRecord:
        place = self._origins.place(source)
        sizes = sizes_of(place, source)
        total = sum(sizes.values()) + _RECORD_BYTES
        if total > self._disk.capacity_bytes:
            raise InvalidRequest(
                f"adapter '{source}': has {total} bytes; {self._disk.limit} is {self._disk.capacity_bytes}"
            )

        def fill(folder: Path) -> AdapterRecord:
            progress(f"fetching adapter {source} ({total / 1e6:.1f} MB)")
            copy_files(place, sizes, folder, source)
            progress(f"checking adapter {source}")
            return self._checked(folder, source, wanted)

        return self._disk.put(total, fill)

    def _checked(self, folder: Path, source: AdapterSource, wanted: AdapterDigest) -> AdapterRecord:
        layout = check_layout(folder, self._rules)
        digest = check_numbers(folder, layout)
        if wanted and digest != wanted:
            raise ModelNotFound(
                f"adapter '{source}': its contents have changed: they are version {digest}, not {wanted}; "
                "load it again under its name"
            )
        (folder / CONFIG_NAME).write_text(layout.config.to_json(layout.words))
        return make_record(folder, digest, layout.rank)

    def _copied(self, digest: AdapterDigest, dram: AdapterFolder) -> AdapterRecord:
        """Errors: as bring_to_dram."""

        def fill(folder: Path) -> AdapterRecord:
            for name in record.sizes:
                shutil.copyfile(self._disk.path / digest / name, folder / name)
            if damaged := record.first_damage(folder):
                raise _DamagedError(f"adapter {digest}: {damaged} in {self._disk.path} was damaged")
            return record

        try:
            with self._disk.using(digest) as record:
                return dram.put(record.size_bytes + _RECORD_BYTES, fill)
        except _DamagedError as error:
            self._disk.remove(digest)
            raise NotFound(str(error)) from error


@contextmanager
def _explained(what: object) -> Iterator[None]:
    """Adds to an error of the files which adapter it is about. what: its source or digest."""
    try:
        yield
    except InvalidRequest as error:
        name = f"adapter '{what}'"
        message = error.message if name in error.message else f"{name}: {error.message}"
        raise InvalidRequest(message, field=error.field) from error
    except OSError as error:
        raise Unavailable(f"adapter '{what}': {error}") from error


class _DamagedError(Exception):
    """A copy differs from what was written to disk."""


def open_adapter_cache(manifest: Manifest, shape: LoraShape, model_dir: Path | None) -> AdapterCache:
    """Removes what killed processes left half done. manifest: has the limits and the S3 endpoint. shape: of
    the engine; adapters are checked against it. model_dir: the base model, whose weights have the shapes that
    adapters must fit; None: a simulated engine, which fits all. Errors: OSError when the directories cannot
    be made, LLMServeError."""
    lora = lora_of(manifest) or Lora()
    on_disk = AdapterFolder(disk_folder(), int(lora.disk_gb * _GIB), "lora.disk_gb")
    tiers = {AdapterTier.DISK: on_disk}
    if lora.dram_gb:
        in_dram = AdapterFolder(dram_folder(), int(lora.dram_gb * _GIB), "lora.dram_gb")
        tiers[AdapterTier.DRAM] = in_dram
    base = BaseWeights() if model_dir is None else read_base_weights(model_dir)
    rules = AdapterRules(base, shape.max_rank, shape.target_modules)
    return AdapterCache(_origins(manifest, lora), rules, tiers)


def disk_folder() -> Path:
    """Returns the directory of adapters on disk. Pods have one each: the cache directory may be a volume of
    several hosts, between which no directory can be locked."""
    given = os.environ.get(DISK_VARIABLE)
    return Path(given) if given else default_cache_dir() / "adapters"


def dram_folder() -> Path:
    """Returns the directory of adapters in DRAM. The supervisor names one, which ends with the cluster."""
    given = os.environ.get(DRAM_VARIABLE)
    return Path(given) if given else _SHARED_MEMORY / f"llmserve-adapters-{os.geteuid()}"


def _origins(manifest: Manifest, lora: Lora) -> AdapterOrigins:
    """The store of KV blocks is often the same as that of adapters, so its address is the default."""
    declared = (parse_adapter_source(one.source, one.revision) for one in manifest.model.adapters)
    stores = [one for one in manifest.storageClasses if (one.location or "").startswith("s3://")]
    endpoint = lora.endpoint or next((one.endpoint for one in stores if one.endpoint), None)
    region = lora.region or next((one.region for one in stores if one.region), None)
    allowed = AllowedSources(frozenset(map(str, declared)), lora.allowed_sources)
    return AdapterOrigins(allowed, BucketAddress("", endpoint or "", region or ""))
