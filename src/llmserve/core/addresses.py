"""Joins host and port of an address, and splits them. IPv6 hosts stand in brackets in an address, and without
them everywhere else. Pure."""


def join_address(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """Returns the host of HOST:PORT without brackets; empty when there is none."""
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT. Errors: ValueError when the port is no number."""
    return host_of(address), int(address.rpartition(":")[2])


def with_brackets(address: str) -> str:
    """Returns HOST:PORT with the brackets that an IPv6 host needs. A pod joins its IP and a port without
    them."""
    host, colon, port = address.rpartition(":")
    return join_address(host_of(address), port) if colon and host else address
