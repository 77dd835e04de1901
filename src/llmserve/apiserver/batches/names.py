"""Ids of files and batches, and the paths at which they are kept.

An id begins with the time at which it was made, so ids sort by age. A tenant's own files and batches are in
a folder of its own, and are looked for only there.

    files/TENANT/ID.json      what is said of a file; it is written when the contents are whole
    contents/ID               the contents
    batches/TENANT/ID.json    what is said of a batch; its owner alone writes it
    open/TENANT.ID            exists until the batch has ended; its claim is that of the batch
    cancels/ID                exists when the batch is to be cancelled
    journals/ID               results so far
"""

import hashlib
import re
import secrets

from llmserve.core.errors import NotFound
from llmserve.core.ids import TenantId

FILES, BATCHES, OPEN, CONTENTS = "files", "batches", "open", "contents"
_ID = re.compile(r"(?:file-|batch_)[0-9a-f]{32}")
_TIME_DIGITS = 12


def new_file_id(now: float) -> str:
    return f"file-{_unique(now)}"


def new_batch_id(now: float) -> str:
    return f"batch_{_unique(now)}"


def _unique(now: float) -> str:
    """now: Unix time in seconds. Returns 32 hexadecimal digits."""
    return f"{int(now * 1000):0{_TIME_DIGITS}x}{secrets.token_hex(10)}"


def made_at(name: str) -> float:
    """Returns the Unix time at which an id was made."""
    return int(name[-32 : _TIME_DIGITS - 32], 16) / 1000


def check_id(name: str, what: str) -> str:
    """Returns an id that may stand in a path. Errors: NotFound, for what is none."""
    if not _ID.fullmatch(name):
        raise NotFound(f"there is no {what} {name!r}")
    return name


def folder_of(tenant: TenantId) -> str:
    """Returns the name of a tenant's folder. Names of tenants may have any sign in them, and any length."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


def file_path(folder: str, file_id: str) -> str:
    return f"{FILES}/{folder}/{file_id}.json"


def contents_path(file_id: str) -> str:
    return f"{CONTENTS}/{file_id}"


def batch_path(folder: str, batch_id: str) -> str:
    return f"{BATCHES}/{folder}/{batch_id}.json"


def open_path(folder: str, batch_id: str) -> str:
    return f"{OPEN}/{folder}.{batch_id}"


def cancel_path(batch_id: str) -> str:
    return f"cancels/{batch_id}"


def journal_path(batch_id: str) -> str:
    return f"journals/{batch_id}"
