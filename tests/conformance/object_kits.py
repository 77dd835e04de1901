"""The object tier for test_tier.py: on a directory, and on a real S3 server."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from obstore.store import LocalStore, ObjectStore, S3Store

from llmserve.kvstore.tiers.base import BlobKey, Tier
from llmserve.kvstore.tiers.object import ObjectSettings, object_tier
from llmserve.kvstore.tiers.object.layout import FOOTER_BYTES, PackEntry, decode_footer, decode_index
from tests.support.faulty_s3 import Fault, FaultyS3, Kind
from tests.support.seaweed import BUCKET, credentials

MIB = 1 << 20


def entries_of(pack: bytes | bytearray) -> list[PackEntry]:
    footer = decode_footer(memoryview(pack), len(pack))
    return decode_index(memoryview(pack)[-FOOTER_BYTES - footer.index_bytes : -FOOTER_BYTES], footer)


def flip_blob(store: ObjectStore, key: BlobKey) -> None:
    """One bit of the data of every copy of a blob."""
    for chunk in store.list():
        for path in [meta["path"] for meta in chunk if meta["path"].endswith(".pack")]:
            pack = bytearray(store.get(path).bytes())
            for entry in entries_of(pack):
                if entry.key == key:
                    pack[entry.offset + entry.length_bytes - 1] ^= 1
                    store.put(path, bytes(pack))


class DirectoryKit:
    capacity_bytes = 16 * MIB

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._root: Path = request.getfixturevalue("tmp_path") / "bucket"

    def make(self) -> Tier:
        return self._tier(self._root)

    def make_unusable(self) -> Tier:
        self._root.write_text("not a directory")
        return self._tier(self._root)

    def damage(self, key: BlobKey) -> None:
        flip_blob(LocalStore(self._root), key)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """The packs are another's meanwhile, and so is their place: not there would be a miss."""
        away = self._root.with_name("away")
        (self._root / "one").rename(away)
        (self._root / "one").write_text("not a directory")
        yield
        (self._root / "one").unlink()
        away.rename(self._root / "one")

    def _tier(self, root: Path) -> Tier:
        return object_tier(
            ObjectSettings(f"file://{root}", "one", self.capacity_bytes, pack_bytes=MIB, linger_seconds=0.002)
        )


class S3Kit:
    """failing: the credentials are another's meanwhile. It refuses at once, so no gate closes behind it."""

    capacity_bytes = 16 * MIB

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._proxy: FaultyS3 = request.getfixturevalue("s3_proxy")
        self._patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        for name, value in credentials().items():
            self._patch.setenv(name, value)
        self._url = f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def make(self) -> Tier:
        return object_tier(self._settings(self._url))

    def make_unusable(self) -> Tier:
        self._patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        return object_tier(self._settings(self._url))

    def damage(self, key: BlobKey) -> None:
        flip_blob(self._store(), key)

    @contextmanager
    def failing(self) -> Iterator[None]:
        self._proxy.fault = Fault(Kind.STATUS, status=403, code="AccessDenied")
        yield
        self._proxy.fault = None

    def _settings(self, url: str) -> ObjectSettings:
        return ObjectSettings(
            url,
            "one",
            self.capacity_bytes,
            endpoint=self._proxy.endpoint,
            pack_bytes=MIB,
            linger_seconds=0.002,
        )

    def _store(self) -> ObjectStore:
        return S3Store.from_url(self._url, endpoint=self._proxy.endpoint, client_options={"allow_http": True})
