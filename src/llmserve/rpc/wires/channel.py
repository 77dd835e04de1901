"""Channels of gRPC that show who calls, and over TLS follow the certificate of the process."""

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.wires.tls import client_tls

if TYPE_CHECKING:
    from llmserve.rpc.wires.certificates import Certificate, CertificateFolder

_Metadata = tuple[tuple[str, str], ...]


class ShowingChannel(grpc.aio.Channel):
    """Adds metadata to each call. An interceptor of gRPC would do that too, but it puts a queue before every
    message of a stream."""

    def __init__(self, channel: grpc.aio.Channel, shown: _Metadata) -> None:
        self._channel, self._shown = channel, shown

    def _calls(self, kind: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Returns what starts calls of one method. kind: such as `unary_unary`."""
        call, shown = getattr(self._channel, kind)(*arguments, **options), self._shown

        def start(*arguments: Any, metadata: Sequence[tuple[str, str]] | None = None, **options: Any) -> Any:
            return call(*arguments, metadata=(*shown, *(metadata or ())), **options)

        return start

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._calls("unary_unary", *arguments, **options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._calls("unary_stream", *arguments, **options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._calls("stream_unary", *arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._calls("stream_stream", *arguments, **options)

    async def __aenter__(self) -> "ShowingChannel":
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()


class TlsChannel(ShowingChannel):
    """A channel of gRPC keeps its certificate. When that of the process changes, new calls go over a new
    channel, and those that run end on the one on which they began."""

    def __init__(
        self,
        address: str,
        certificates: "CertificateFolder",
        callee: CallerRole,
        options: Sequence[tuple[str, int]],
        shown: _Metadata,
    ) -> None:
        self._address, self._certificates, self._callee, self._options = (
            address,
            certificates,
            callee,
            options,
        )
        self._certificate = certificates.current()
        self._running: weakref.WeakSet[Any] = weakref.WeakSet()  # calls on the channel
        self._former: list[tuple[grpc.aio.Channel, weakref.WeakSet[Any]]] = []
        super().__init__(self._open(), shown)

    def _calls(self, kind: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        made: tuple[grpc.aio.Channel | None, Any] = (None, None)

        def start(*given: Any, **more: Any) -> Any:
            nonlocal made
            self._follow()
            if made[0] is not self._channel:
                made = self._channel, super(TlsChannel, self)._calls(kind, *arguments, **options)
            call = made[1](*given, **more)
            self._running.add(call)
            return call

        return start

    async def close(self, grace: float | None = None) -> None:
        for channel, _ in self._former:
            await channel.close(grace)
        await super().close(grace)

    def _follow(self) -> None:
        certificate = self._certificates.current()
        if certificate is self._certificate:
            return
        # What nobody holds closes itself.
        self._former = [one for one in self._former if not all(call.done() for call in one[1])]
        self._former.append((self._channel, self._running))
        self._certificate, self._running = certificate, weakref.WeakSet()
        self._channel = self._open()

    def _open(self) -> grpc.aio.Channel:
        credentials, options = client_tls(self._certificate, self._callee, self._options)
        return grpc.aio.secure_channel(self._address, credentials, options=options)


class BlockingChannel:
    """A channel for threads, which the owner opens anew before it tries to reach a peer again."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        callee: CallerRole,
        options: Sequence[tuple[str, int]],
    ) -> None:
        self._address, self._callee, self._options = address, callee, options
        self._certificates = credentials.certificates
        self._opened: tuple[Certificate | None, grpc.Channel] | None = None

    def latest(self) -> grpc.Channel:
        """Returns a channel with the certificate of this moment. Where that is new, calls on the channel
        before are cancelled."""
        certificate = self._certificates.current() if self._certificates else None
        if self._opened is None or self._opened[0] is not certificate:
            self.close()
            self._opened = certificate, self._open(certificate)
        return self._opened[1]

    def close(self) -> None:
        """Idempotent."""
        if self._opened is not None:
            self._opened[1].close()

    def _open(self, certificate: "Certificate | None") -> grpc.Channel:
        if certificate is None:
            return grpc.insecure_channel(self._address, options=self._options)
        credentials, options = client_tls(certificate, self._callee, self._options)
        return grpc.secure_channel(self._address, credentials, options=options)
