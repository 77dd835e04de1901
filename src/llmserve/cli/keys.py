"""`llmserve keys`: makes and revokes the keys of clients while a cluster runs."""

import argparse
import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from llmserve.apiserver.auth.caller import AccessScope
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.store import KeyStore, build_key_store
from llmserve.apiserver.auth.stores.stored_key import StoredKey, make_key
from llmserve.cli.command import EXIT_OK, Actions, Command, add_json, add_manifest, count, positive
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest, NotFound

_ABOUT = """\
Makes and revokes the keys of clients. They are in the place that `security.keys` of the manifest names, and
apiservers notice a change within two seconds.

  llmserve keys create --tenant red                       a key for inference and reading; it is shown once
  llmserve keys create --tenant ops --scope admin --expires 30d
  llmserve keys create --tenant red --model tiny --requests-per-second 5 --concurrency 2
  llmserve keys list                                      ids, tenants, rights, limits, last use
  llmserve keys revoke 3f9a1c07be52                       by its id, which is the part of a key after `ls-`
"""
_TIME = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS = {"m": 60, "h": 3600, "d": 86400}

_Row = tuple[str, str, str, str, str, str, str]
Run = Callable[[argparse.Namespace, KeyStore], Awaitable[int]]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = Actions[Run](parser, add_manifest, _add_key_file)
    _add_rights(actions.add("create", _create, "make a key, and show it once"))
    add_json(actions.add("list", _list, "list the keys, without what is secret of them"))
    revoke = actions.add("revoke", _revoke, "end a key")
    revoke.add_argument("id", metavar="ID", help="of the key, as `llmserve keys list` shows it")


def _add_key_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key-file", metavar="FILE", help="the keys are here, whatever the manifest says")


def _add_rights(create: argparse.ArgumentParser) -> None:
    create.add_argument("--tenant", required=True, help="whose key it is")
    scopes = [scope.value for scope in AccessScope]
    create.add_argument(
        "--scope",
        action="append",
        choices=scopes,
        help="what it is good for, once for each (default: inference and read)",
    )
    create.add_argument("--model", action="append", help="it may use this model only; may be repeated")
    create.add_argument("--adapter", action="append", help="it may use this adapter only; may be repeated")
    for what in ("requests", "tokens"):
        about = f"most {what} in the whole cluster, on average"
        create.add_argument(f"--{what}-per-second", type=positive, metavar="N", help=about)
    create.add_argument("--concurrency", type=count, metavar="N", help="most requests at the same time")
    create.add_argument("--expires", type=_seconds, metavar="TIME", help="after this time: 90m, 12h or 30d")
    add_json(create)


def _seconds(text: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes, hours or days, such as 30d")
    return int(found[1]) * _UNITS[found[2]]


def _run(options: argparse.Namespace) -> int:
    return asyncio.run(_with_store(options))


async def _with_store(options: argparse.Namespace) -> int:
    store = _store(options)
    try:
        action: Run = options.action
        return await action(options, store)
    finally:
        await store.aclose()


def _store(options: argparse.Namespace) -> KeyStore:
    """Errors: ManifestError, InvalidRequest."""
    if options.key_file is not None:
        return FileKeys(Path(options.key_file))
    path = Path(options.file)
    store = build_key_store(load_manifest(path), os.environ, path.parent)
    if store is None:
        raise InvalidRequest(f"{path} names no place of keys: set security.keys.file, or give --key-file")
    return store


async def _create(options: argparse.Namespace, store: KeyStore) -> int:
    now = time.time()
    made = make_key(
        options.tenant,
        options.scope or (AccessScope.INFERENCE, AccessScope.READ),
        now,
        models=options.model,
        adapters=options.adapter,
        requests_per_second=options.requests_per_second,
        tokens_per_second=options.tokens_per_second,
        max_requests_in_flight=options.concurrency,
        expires_at=None if options.expires is None else int(now + options.expires),
    )
    await store.add(made.stored)
    if options.json:
        print(json.dumps({"key": made.text, **_shown(made.stored)}))
    else:
        print(made.text)
    return EXIT_OK


async def _list(options: argparse.Namespace, store: KeyStore) -> int:
    keys = sorted(await store.read(), key=lambda key: (key.tenant, key.created_at, key.id))
    if options.json:
        print(json.dumps({"keys": [_shown(key) for key in keys]}, indent=2))
        return EXIT_OK
    rows: list[_Row] = [("ID", "TENANT", "SCOPES", "ONLY", "LIMITS", "EXPIRES", "LAST USE")]
    rows += [_row(key, time.time()) for key in keys]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return EXIT_OK


async def _revoke(options: argparse.Namespace, store: KeyStore) -> int:
    if not await store.remove(options.id):
        raise NotFound(f"there is no key {options.id}; `llmserve keys list` shows all")
    print(f"key {options.id} is revoked")
    return EXIT_OK


def _shown(key: StoredKey) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})


def _row(key: StoredKey, now: float) -> _Row:
    limits = {
        "requests/s": key.requests_per_second,
        "tokens/s": key.tokens_per_second,
        "at once": key.max_requests_in_flight,
    }
    expires = "expired" if key.has_expired(now) else _date(key.expires_at)
    return (
        key.id,
        key.tenant,
        ",".join(key.scopes),
        _names([*(key.models or ()), *(key.adapters or ())]),
        _names([f"{limit:g} {what}" for what, limit in limits.items() if limit is not None]),
        expires,
        _date(key.used_at),
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "-"


def _date(unix: int | None) -> str:
    return "-" if unix is None else datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%MZ")


COMMAND = Command(
    "keys",
    "make and revoke the keys of clients",
    _ABOUT,
    _configure,
    _run,
)
