"""Media come from public addresses, whatever a name says."""

import socket

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from llmserve.apiserver.limits.addresses import CheckedResolver, may_ask
from llmserve.core.errors import InvalidRequest


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "fec0::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b::7f00:1"),
        *("2001:0:4136:e378:8000:63bf:f5ff:fffe", "not an address", ""),
    ],
)
def test_an_address_that_is_not_public_is_not_asked(address: str) -> None:
    assert not may_ask(address, {"media.example.com"})
    assert may_ask(address, {"media.example.com", address})


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_asked(address: str) -> None:
    assert may_ask(address, set())


class Names(AbstractResolver):  # type: ignore[misc]
    """Each question has the next answer: the addresses of the host."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self._answers = list(answers)
        self.closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer = self._answers.pop(0)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in answer
        ]

    async def close(self) -> None:
        self.closed = True


async def test_what_is_not_public_of_a_host_s_addresses_is_left_out() -> None:
    names = Names(("10.0.0.1", "8.8.8.8", "127.0.0.1"), ("10.0.0.1",))
    resolver = CheckedResolver({"a.com"}, names)
    assert [one["host"] for one in await resolver.resolve("a.com", 80)] == ["8.8.8.8"]
    with pytest.raises(InvalidRequest, match="no address from which media are fetched") as refused:
        await resolver.resolve("a.com", 80)
    assert "10.0.0.1" not in str(refused.value)
    await resolver.close()
    assert names.closed


@pytest.mark.parametrize("hosts", [{"a.com"}, {"a.com", "127.0.0.1"}])
async def test_a_connection_goes_to_the_address_that_was_checked(hosts: set[str]) -> None:
    """The name leads elsewhere after it was looked up first. (A request in between has no part here: each
    connection asks once, and is made to what was checked.)"""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound("/redirected")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    connector = aiohttp.TCPConnector(resolver=CheckedResolver(hosts, Names(("127.0.0.1",), ("8.8.8.8",))))
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"http://a.com:{port}/image"
            if "127.0.0.1" in hosts:
                async with session.get(url, allow_redirects=False) as got:
                    assert got.status == 302
            else:
                with pytest.raises(InvalidRequest):
                    await session.get(url, allow_redirects=False)
    finally:
        await runner.cleanup()
    assert asked == (["/image"] if "127.0.0.1" in hosts else [])
