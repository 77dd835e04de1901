"""Blocks of an archive go where a worker that asks for their prompt will look."""

import io
from collections.abc import Sequence
from itertools import pairwise

import xxhash

from llmserve.cli.kv.archive import owners_of
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.sharding import Sharding
from llmserve.kvstore.store.archive import ArchiveRecord, ArchiveWriter

MANAGERS = [f"kvmanager-{number}" for number in range(3)]


def chain(name: str, blocks: int) -> list[BlockHash]:
    return [BlockHash(xxhash.xxh3_128_digest(f"{name}-{number}".encode())) for number in range(blocks)]


def archive(chains: Sequence[Sequence[BlockHash]]) -> io.BytesIO:
    """Of each chain, the first block has none before it."""
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    for keys in chains:
        for parent, key in pairwise([None, *keys]):
            assert key
            writer.begin(
                ArchiveRecord(key, parent, TenantId("red"), ((1, xxhash.xxh3_64_intdigest(b"x"), ""),))
            )
            writer.write(b"x")
    writer.finish()
    return file


def expected(keys: list[BlockHash]) -> dict[BlockHash, str]:
    parts = Sharding(dict.fromkeys(MANAGERS, 1.0)).shards(keys)
    return {key: part.manager for part in parts for key in keys[part.start : part.stop]}


def test_of_one_kvmanager_to_several() -> None:
    prompt = chain("a", 300)
    assert owners_of(archive([prompt]), MANAGERS) == expected(prompt)


def test_of_several_where_chains_are_cut_into_parts() -> None:
    prompt = chain("b", 300)
    parts = Sharding(dict.fromkeys(MANAGERS[:2], 1.0)).shards(prompt)
    by_manager = sorted(parts, key=lambda part: (part.manager, part.start))
    file = archive([prompt[part.start : part.stop] for part in by_manager])
    assert owners_of(file, MANAGERS) == expected(prompt)


def test_a_chain_whose_beginning_is_missing_goes_somewhere() -> None:
    prompt = chain("c", 100)
    homes = owners_of(archive([prompt[10:]]), MANAGERS)
    assert set(homes) == set(prompt[10:])
    assert set(homes.values()) <= set(MANAGERS)
