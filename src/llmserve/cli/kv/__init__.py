"""`llmserve kv`: looks after the stored KV blocks of a running cluster."""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console

from llmserve.cli.cluster import add_cluster, find_cluster
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Actions, Command, add_json
from llmserve.cli.kv.archive import checked_archive, new_archive
from llmserve.cli.kv.managers import KvManagers, kv_managers
from llmserve.cli.kv.page import block_page, block_rows, size, stats_page, stats_rows
from llmserve.cli.screen import screen
from llmserve.core.errors import InvalidRequest
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

_ABOUT = """\
Looks after the KV blocks that the cluster keeps below its engines (storageClasses): what each tier holds and
does, which blocks there are, which must stay or go. A tier is named as in the manifest. A block is named by
its hash or the beginning of it, as `ls` shows it.

  llmserve kv stats                          blocks, bytes, hits, speeds and evictions of each tier
  llmserve kv ls --tenant acme --limit 20    blocks, used last first
  llmserve kv pin 3fa9c0                     keep a block, and all before it, in the tiers that have it
  llmserve kv evict --tenant acme            remove all blocks of a tenant
  llmserve kv verify --tier disk             read everything, compare checksums, drop what is corrupt
  llmserve kv export prompts.kv --tier disk  blocks to a file; `kv import` brings them back
"""
_DEFAULT_LISTED = 50

Run = Callable[[argparse.Namespace, KvManagers], Awaitable[int]]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = Actions[Run](parser, add_cluster)
    add_json(actions.add("stats", _stats, "what each tier holds and has done"))
    _configure_ls(actions.add("ls", _ls, "list blocks, used last first"))
    pin = "keep a block and all before it, or what a tenant has now, until unpinned, corrupt or restarted"
    for name, about in (("pin", pin), ("unpin", "undo `pin`")):
        one = actions.add(name, _pin, about)
        one.set_defaults(unpin=name == "unpin")
        _add_chosen(one)
    evict = actions.add("evict", _evict, "remove blocks, and what follows them, unless pinned or in use")
    _add_chosen(evict).add_argument("--all", action="store_true", help="every block of every tier")
    evict.add_argument("--yes", action="store_true", help="with --all: it is meant")
    verify = actions.add("verify", _verify, "read blocks and compare checksums; drop the corrupt ones")
    _add_filter(verify)
    verify.add_argument(
        "--sample", type=float, default=1.0, metavar="SHARE", help="of the blocks, at random (default: 1)"
    )
    export = actions.add("export", _export, "write blocks to a file (not encrypted; only you may read it)")
    export.add_argument("path", metavar="FILE", help="must not exist")
    _add_filter(export)
    import_action = actions.add("import", _import, "bring the blocks of a file back")
    import_action.add_argument("path", metavar="FILE", help="of `llmserve kv export`")
    _add_tier(import_action, "where to (default: the fastest below DRAM, if there is one)")


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    _add_filter(parser)
    parser.add_argument("--hash", default="", metavar="HEX", help="only blocks whose hash begins so")
    parser.add_argument(
        "--limit",
        type=int,
        default=_DEFAULT_LISTED,
        metavar="N",
        help="at most so many (default: %(default)s)",
    )
    add_json(parser)


def _add_chosen(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("hash", nargs="?", default="", metavar="HASH", help="of a block, or its beginning")
    _add_filter(parser)
    return parser


def _add_filter(parser: argparse.ArgumentParser) -> None:
    _add_tier(parser, "only in this tier")
    parser.add_argument("--tenant", metavar="NAME", help="only blocks of this tenant")


def _add_tier(parser: argparse.ArgumentParser, help_: str) -> None:
    parser.add_argument("--tier", default="", metavar="NAME", help=help_)


def _filter(options: argparse.Namespace) -> pb.BlockFilter:
    return pb.BlockFilter(tier=options.tier, tenant=options.tenant, hash_prefix=getattr(options, "hash", ""))


def _run(options: argparse.Namespace) -> int:
    return asyncio.run(_act(options))


async def _act(options: argparse.Namespace) -> int:
    async with kv_managers(find_cluster(options)) as link:
        run: Run = options.action
        return await run(options, link)


# -- actions


async def _stats(options: argparse.Namespace, link: KvManagers) -> int:
    status = await link.status()
    if options.json:
        print(json.dumps(stats_rows(status), indent=2))
    else:
        screen().print(stats_page(status))
    return EXIT_OK


async def _ls(options: argparse.Namespace, link: KvManagers) -> int:
    if options.limit < 1:
        raise InvalidRequest(f"--limit: must be at least 1, got {options.limit}")
    listing = await link.list_blocks(_filter(options), options.limit)
    if options.json:
        print(json.dumps(block_rows(listing), indent=2))
    else:
        screen().print(block_page(listing))
    return EXIT_OK


async def _pin(options: argparse.Namespace, link: KvManagers) -> int:
    if not options.hash and options.tenant is None:
        raise InvalidRequest("name the hash of a block, or --tenant")
    done = await link.pin(_filter(options), unpin=options.unpin)
    verb = "Unpinned" if options.unpin else "Pinned"
    print(
        f"{verb} {done.changed_blocks} blocks; {done.pinned_blocks} are pinned now, with those before them."
    )
    return EXIT_OK


async def _evict(options: argparse.Namespace, link: KvManagers) -> int:
    chosen = bool(options.hash or options.tier) or options.tenant is not None
    if chosen == options.all:
        raise InvalidRequest("say what to evict: the hash of a block, --tenant or --tier; or --all alone")
    if options.all and not options.yes:
        raise InvalidRequest("this removes every stored block of the cluster: add --yes if it is meant")
    done = await link.evict(_filter(options))
    print(f"Evicted {done.evicted_blocks} blocks ({size(done.evicted_bytes)}), counted once for each tier.")
    if done.pinned_blocks:
        print(f"{done.pinned_blocks} are pinned and stay: `llmserve kv unpin` them first.")
    if done.busy_blocks:
        print(f"{done.busy_blocks} stay, because they or what follows them are in use: try again.")
    return EXIT_OK


async def _verify(options: argparse.Namespace, link: KvManagers) -> int:
    tiers: dict[str, pb.VerifyBlocksResponse] = {}
    corrupt: list[str] = []
    with Console(stderr=True).status("Verifying ...") as working:
        async for now in link.verify(_filter(options), options.sample):
            tiers[now.tier] = now
            corrupt += [f"{now.tier}: {bytes(key).hex()} was corrupt: {now.reason}" for key in now.corrupt]
            done = f"{now.checked_blocks} of {now.all_blocks} blocks of {now.tier}"
            working.update(f"Verified {done}, {size(now.bytes)} ...")
    found = [*corrupt, *_not_whole(tiers.values())]
    for last in tiers.values():
        print(f"{last.tier}: {last.checked_blocks} blocks verified, {size(last.bytes)}")
    for line in found:
        print(line)
    if corrupt:
        print(f"{len(corrupt)} corrupt blocks were dropped.")
    return EXIT_FAILED if found else EXIT_OK


def _not_whole(tiers: Iterable[pb.VerifyBlocksResponse]) -> Iterator[str]:
    for last in tiers:
        if last.missing_blocks:
            yield f"{last.tier}: {last.missing_blocks} blocks are no longer on the medium; dropped"
        if last.unreadable_blocks:
            yield f"{last.tier}: {last.unreadable_blocks} blocks cannot be read now; kept ({last.reason})"


async def _export(options: argparse.Namespace, link: KvManagers) -> int:
    path = Path(options.path)
    with new_archive(path) as into, Console(stderr=True).status("Exporting ...") as working:
        async for all_blocks in link.export(_filter(options), into):
            done = f"{into.contents.blocks} of {all_blocks} blocks"
            working.update(f"Exported {done}, {size(into.contents.size_bytes)} ...")
    print(f"Exported {into.contents.blocks} blocks ({size(into.contents.size_bytes)}) to {path}.")
    return EXIT_OK


async def _import(options: argparse.Namespace, link: KvManagers) -> int:
    """Checks the whole file first: nothing of a bad file is imported."""
    last = pb.ImportProgress()
    with Console(stderr=True).status("Checking ...") as working, checked_archive(Path(options.path)) as found:
        file, contents = found
        async for last in link.import_blocks(file, options.tier):
            working.update(f"Imported {last.received_blocks} of {contents.blocks} blocks ...")
    print(
        f"Imported into {last.tier}: {last.stored_blocks} blocks stored, {last.present_blocks} were there, "
        f"{last.refused_blocks} not stored."
    )
    if last.refused_blocks:
        print("No room, room given to what came after, or trouble of the medium: see the kvmanager's log.")
    return EXIT_FAILED if last.refused_blocks else EXIT_OK


COMMAND = Command(
    "kv", "look after stored KV blocks: list, pin, evict, verify, export", _ABOUT, _configure, _run
)
