"""The addresses from which media are fetched: public ones, and those that are allowed themselves.

A name that is allowed may lead into this network, and may lead elsewhere at each question (DNS rebinding). So
what is checked is the address that a connection is made to, each time.
"""

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from llmserve.core.errors import InvalidRequest

_NAT64 = IPv6Network("64:ff9b::/96")


class CheckedResolver(AbstractResolver):
    """hosts: names and addresses that are allowed. names: asks for the addresses of a name."""

    def __init__(self, hosts: Collection[str], names: AbstractResolver | None = None) -> None:
        self._hosts, self._names = hosts, names or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Errors: InvalidRequest, without an address, when none of the host's may be asked; OSError."""
        found = await self._names.resolve(host, port, family)
        allowed = [one for one in found if may_ask(one["host"], self._hosts)]
        if not allowed:
            raise InvalidRequest("the host of a URL has no address from which media are fetched")
        return allowed

    async def close(self) -> None:
        await self._names.close()


def may_ask(text: str, hosts: Collection[str]) -> bool:
    """Returns whether media may be fetched from an address."""
    if text in hosts:
        return True
    try:
        address = ip_address(text)
    except ValueError:
        return False
    inner = _inner(address)
    return _is_public(address if inner is None else inner)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """Returns the IPv4 address that one of IPv6 stands for, where a gateway may put it in its place."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    of_a_site = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or of_a_site)
