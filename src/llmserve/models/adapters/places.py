"""The places that adapters are copied from: a directory, the hub, a bucket.

Each says which files it has and how long they are before any of them is read, so that nothing is copied that
is too long, or that would run code when it is loaded.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from llmserve.buckets.connect import BucketAddress
from llmserve.config.adapter_source import AdapterSource, AdapterSourceKind, is_in, parse_adapter_source
from llmserve.config.conflict import Conflict
from llmserve.config.schema import AdapterSpec
from llmserve.core.errors import InvalidRequest, LLMServeError, ModelNotFound, Unavailable
from llmserve.models.adapters.check import WEIGHTS_NAME
from llmserve.models.adapters.peft import CONFIG_NAME, MOST_CONFIG_BYTES

FILES = (CONFIG_NAME, WEIGHTS_NAME)
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.pkl")


class AdapterPlace(Protocol):
    """Errors of both methods: ModelNotFound (there is no such place), InvalidRequest (a file that cannot be
    one of an adapter), Unavailable (away, or too slow: another try may do)."""

    def size_bytes(self, name: str) -> int | None:
        """Returns None when there is no such file."""

    def save(self, name: str, target: Path) -> None:
        """Copies a file that is there. Errors also: OSError."""


def place_of(source: AdapterSource, bucket: BucketAddress, roots: Iterable[str] = ()) -> AdapterPlace:
    """bucket: endpoint and region for sources in buckets. roots: of a directory, see DirectoryPlace."""
    match source.kind:
        case AdapterSourceKind.DIRECTORY:
            return DirectoryPlace(Path(source.place), roots)
        case AdapterSourceKind.HUB:
            from llmserve.models.adapters.hub import HubPlace

            return HubPlace(source.place, source.revision)
        case AdapterSourceKind.S3:
            return _bucket_place(BucketAddress(str(source), bucket.endpoint, bucket.region))


def sizes_of(place: AdapterPlace, source: AdapterSource) -> dict[str, int]:
    """Returns the sizes of an adapter's files. Errors: ModelNotFound, naming what is missing; InvalidRequest
    for weights in another format; those of the place."""
    sizes: dict[str, int] = {}
    for name in FILES:
        size = place.size_bytes(name)
        if size is None:
            raise _missing(place, source, name)
        sizes[name] = size
    if sizes[CONFIG_NAME] > MOST_CONFIG_BYTES:
        raise InvalidRequest(
            f"adapter '{source}': {CONFIG_NAME} has {sizes[CONFIG_NAME]} bytes; at most {MOST_CONFIG_BYTES} "
            "are read"
        )
    return sizes


def adapter_refusals(adapters: Sequence[AdapterSpec]) -> Iterator[Conflict]:
    """Yields which adapters of the manifest this machine cannot have, where another try would not cure it:
    directories that hold no adapter, packages that are missing. It asks neither the hub nor a bucket, and
    reads no weights: workers check all of that."""
    for index, spec in enumerate(adapters):
        source = parse_adapter_source(spec.source, spec.revision)
        try:
            place = place_of(source, BucketAddress(""))
            if source.kind is AdapterSourceKind.DIRECTORY:
                sizes_of(place, source)
        except LLMServeError as error:
            yield Conflict((("models", "adapters", index, "source"),), error.message)


def _missing(place: AdapterPlace, source: AdapterSource, name: str) -> Exception:
    for other in _PICKLES if name == WEIGHTS_NAME else ():
        if place.size_bytes(other) is not None:
            return InvalidRequest(
                f"adapter '{source}': {other} is a pickle, which can run any code when it is loaded; "
                f"save the adapter as {WEIGHTS_NAME}"
            )
    return ModelNotFound(f"adapter '{source}': there is no {name}; is it an adapter of PEFT?")


class DirectoryPlace:
    """roots: real paths that the files must be below, so that no symbolic link among them leads out; none:
    they may be anywhere."""

    def __init__(self, path: Path, roots: Iterable[str] = ()) -> None:
        self._path = path
        self._roots = tuple(roots)
        if not os.path.isdir(path):
            raise ModelNotFound(f"adapter 'dir:{path}': {path} is not a directory on this host")

    def size_bytes(self, name: str) -> int | None:
        path = self._path / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelNotFound(f"adapter 'dir:{self._path}': {name}: {error.strerror}") from error
        real = os.path.realpath(path)
        if self._roots and not any(is_in(real, root) for root in self._roots):
            raise InvalidRequest(f"adapter 'dir:{self._path}': {name} is a link out of what is allowed")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRequest(f"adapter 'dir:{self._path}': {name} is not a file")
        return status.st_size

    def save(self, name: str, target: Path) -> None:
        shutil.copyfile(self._path / name, target)


def _bucket_place(address: BucketAddress) -> AdapterPlace:
    try:
        from llmserve.models.adapters.bucket import BucketPlace
    except ImportError:
        raise InvalidRequest(
            f"adapter '{address.url}': buckets need the package obstore: pip install 'llmserve[s3]'"
        ) from None
    return BucketPlace(address)


def copy_files(place: AdapterPlace, sizes: dict[str, int], folder: Path, source: AdapterSource) -> None:
    """Errors: Unavailable when a file is not as long as was said: it changes, or the connection broke."""
    for name, size in sizes.items():
        place.save(name, folder / name)
        if (has := (folder / name).stat().st_size) != size:
            raise Unavailable(f"adapter '{source}': {has} of {size} bytes of {name} came; does it change?")
