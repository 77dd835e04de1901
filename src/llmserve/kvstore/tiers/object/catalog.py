"""Which blob lies in which pack, and what of each pack is garbage. Pure.

Memory: 218 bytes a blob, measured with keys of 32 bytes.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.object.layout import PackEntry


class Pack:
    """One object of the bucket. mine: this owner may delete it. Entries are kept in columns: there can be
    millions."""

    __slots__ = (
        "checksums", "data_bytes", "header_bytes", "held_bytes", "is_retiring", "keys", "live", "live_count",
        "mine", "offsets", "path", "records_bytes", "size_bytes",
    )  # fmt: skip

    def __init__(self, path: str, size_bytes: int, entries: Sequence[PackEntry], *, mine: bool) -> None:
        self.path, self.size_bytes, self.mine = path, size_bytes, mine
        self.keys = [entry.key for entry in entries]
        self.offsets = array("Q", [entry.offset for entry in entries])
        self.header_bytes = array("H", [entry.header_bytes for entry in entries])
        self.data_bytes = array("Q", [entry.data_bytes for entry in entries])
        self.checksums = array("Q", [entry.checksum for entry in entries])
        self.records_bytes = sum(self.data_bytes)
        self.live = bytearray(len(entries))  # 1: found by its key
        self.live_count = 0
        self.held_bytes = 0  # of data, of the live ones
        self.is_retiring = False  # it is being deleted or rewritten

    def __repr__(self) -> str:
        return f"<Pack {self.path} live={self.live_count}/{len(self.keys)} garbage={self.garbage_share:.0%}>"

    def entry(self, position: int) -> PackEntry:
        return PackEntry(
            self.keys[position],
            self.offsets[position],
            self.header_bytes[position],
            self.data_bytes[position],
            self.checksums[position],
        )

    def live_entries(self) -> list[PackEntry]:
        return [self.entry(position) for position, live in enumerate(self.live) if live]

    @property
    def garbage_share(self) -> float:
        """Share of garbage in the bytes of its records; 1 when nothing is live."""
        return 1.0 - self.held_bytes / max(1, self.records_bytes) if self.live_count else 1.0


@dataclass(frozen=True, slots=True)
class PackedPlace:
    pack: Pack
    position: int

    @property
    def entry(self) -> PackEntry:
        return self.pack.entry(self.position)


class Catalog:
    """used_bytes: of the own packs, whole; held_bytes, blobs: what is live in them."""

    def __init__(self) -> None:
        self._places: dict[BlobKey, PackedPlace] = {}
        self._packs: dict[str, Pack] = {}
        self._with_garbage: dict[str, Pack] = {}  # of the own ones
        self.used_bytes = 0
        self.held_bytes = 0
        self.blobs = 0

    def __repr__(self) -> str:
        return f"<Catalog packs={len(self._packs)} blobs={len(self._places)} used_bytes={self.used_bytes}>"

    def find(self, key: BlobKey) -> PackedPlace | None:
        return self._places.get(key)

    def held(self) -> list[tuple[BlobKey, int]]:
        """Keys and bytes of data, of the own packs."""
        return [
            (key, place.pack.data_bytes[place.position])
            for key, place in self._places.items()
            if place.pack.mine
        ]

    def has_pack(self, path: str) -> bool:
        return path in self._packs

    def add(self, pack: Pack, *, garbage: Sequence[int] = (), instead_of: Pack | None = None) -> None:
        """garbage: positions that were removed earlier. A key that is there already stays where it is, and
        its copy in this pack is garbage; unless it is in `instead_of`, from where it moves here. A pack that
        was written instead of another takes over nothing that has been removed from that one meanwhile."""
        self._packs[pack.path] = pack
        self.used_bytes += pack.size_bytes if pack.mine else 0
        removed = frozenset(garbage)
        for position, key in enumerate(pack.keys):
            there = self._places.get(key)
            moves = there is not None and there.pack is instead_of
            if position not in removed and (moves or (there is None and instead_of is None)):
                self._unplace(key)
                self._place(key, PackedPlace(pack, position))
        self._look_for_garbage(pack)

    def forget(self, key: BlobKey) -> None:
        """The blob is garbage from now on. What is not there is ignored."""
        self._unplace(key)

    def drop(self, pack: Pack) -> int:
        """The pack is no more. The number of blobs that went with it."""
        if self._packs.pop(pack.path, None) is None:
            return 0
        self.used_bytes -= pack.size_bytes if pack.mine else 0
        lost = [key for key, live in zip(pack.keys, pack.live, strict=True) if live]
        for key in lost:
            self._unplace(key)
        self._with_garbage.pop(pack.path, None)
        return len(lost)

    def to_rewrite(self, least_share: float) -> Pack | None:
        """The own pack with the largest share of garbage, if that is enough and nobody is at it. Packs with
        nothing live come first: to rewrite them is to delete them."""
        candidates = [pack for pack in self._with_garbage.values() if not pack.is_retiring]
        worst = max(candidates, key=lambda pack: pack.garbage_share, default=None)
        return worst if worst is not None and worst.garbage_share >= least_share else None

    def removed(self) -> dict[str, list[int]]:
        """The positions of garbage, of each own pack that has any."""
        return {
            path: [position for position, live in enumerate(pack.live) if not live]
            for path, pack in self._with_garbage.items()
        }

    # -- parts

    def _place(self, key: BlobKey, place: PackedPlace) -> None:
        self._places[key] = place
        place.pack.live[place.position] = 1
        self._count(place, 1)

    def _unplace(self, key: BlobKey) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            place.pack.live[place.position] = 0
            self._count(place, -1)
            self._look_for_garbage(place.pack)

    def _look_for_garbage(self, pack: Pack) -> None:
        if pack.mine and pack.live_count < len(pack.keys):
            self._with_garbage[pack.path] = pack

    def _count(self, place: PackedPlace, sign: int) -> None:
        size = sign * place.pack.data_bytes[place.position]
        place.pack.held_bytes += size
        place.pack.live_count += sign
        if place.pack.mine:
            self.held_bytes += size
            self.blobs += sign
