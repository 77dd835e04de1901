"""Names of objects below the url. Pure."""

_PACK = ".pack"


def pack_path(owner: str, time_ns: int, nonce: str) -> str:
    """In the order of time, for whoever looks; nonce: so that no two processes ever write the same one."""
    return f"{owner}/{time_ns:016x}-{nonce}{_PACK}"


def is_pack(path: str) -> bool:
    return path.count("/") == 1 and path.endswith(_PACK)


def removals_path(owner: str) -> str:
    return f"{owner}/removed.json"


def is_of(owner: str, path: str) -> bool:
    return path.startswith(f"{owner}/")


def owner_of(path: str) -> str:
    return path.partition("/")[0]
