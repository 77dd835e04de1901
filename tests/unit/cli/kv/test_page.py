"""What the KV manager answers, as people and programs read it."""

from rich.console import Console, RenderableType

from llmserve.cli.kv.page import block_page, block_rows, size, stats_page, stats_rows
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

STATUS = pb.GetKvStatusResponse(
    tiers=[
        pb.TierStatus(name="[red]memory", kind="dram", capacity_bytes=1 << 30),
        pb.TierStatus(
            name="disk",
            kind="nvme",
            blocks=7,
            used_bytes=3 << 20,
            capacity_bytes=10 << 30,
            hit_blocks=5,
            hit_tokens=640,
            load_bytes=2_000_000_000,
            load_seconds=0.5,
            pinned_blocks=2,
            evictions={"room": 4, "asked": 0},
            outcomes=[pb.TierOutcome(operation="read", result="corrupt", count=1)],
        ),
    ],
    saved_prefill_seconds=12.25,
)


def _text(page: RenderableType) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(page)
    return captured.get()


def test_stats() -> None:
    shown = _text(stats_page(STATUS))
    for part in ("[red]memory", "3.0 MiB of 10.0 GiB", "5 blocks (640 tokens)", "1.9 GiB, 4.00 GB/s"):
        assert part in shown
    for part in ("2 blocks", "disk: evicted 4 room", "disk: read corrupt 1", "Saved prefill: 12.2 s"):
        assert part in shown
    assert "asked" not in shown, "only what has happened"


def test_stats_for_programs() -> None:
    _, disk = stats_rows(STATUS)["tiers"]
    assert (disk["name"], disk["load_bytes"], disk["evictions"]["asked"]) == ("disk", 2_000_000_000, 0)
    assert disk["outcomes"] == {"read": {"corrupt": 1}}


def test_blocks() -> None:
    places = [
        pb.BlockPlace(tier="memory", bytes=5 << 20, idle_seconds=3, pinned=True, in_use=True),
        pb.BlockPlace(tier="disk", bytes=1 << 20, idle_seconds=7000),
    ]
    block = pb.ListedBlock(block_hash=bytes(range(32)), tenant="acme", places=places)
    listing = pb.ListBlocksResponse(blocks=[block], total_blocks=9)
    shown = _text(block_page(listing))
    for part in ("0001020304050607 ", "acme", "memory, disk", "5.0 MiB", "3 s", "1 of 9 blocks"):
        assert part in shown
    (row,) = block_rows(listing)["blocks"]
    assert (row["hash"], row["parent"]) == (bytes(range(32)).hex(), None)
    assert [place["tier"] for place in row["tiers"] if place["pinned"]] == ["memory"]


def test_sizes() -> None:
    assert [size(n) for n in (0, 1023, 1536, 1 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.0 GiB",
        "3.0 TiB",
    ]
