"""gRPC over TLS: both ends show their certificates, those of the moment in which they connect."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from llmserve.rpc.callers import CallerRole
from llmserve.rpc.wires.handshake import HANDSHAKE_SECONDS

# gRPC's name for the time that each try to connect gets; the pauses between them are other options.
_TO_CONNECT = "grpc.min_reconnect_backoff_ms"
_Option = tuple[str, Any]

if TYPE_CHECKING:
    from llmserve.rpc.wires.certificates import Certificate, CertificateFolder


def server_tls(folder: "CertificateFolder") -> grpc.ServerCredentials:
    """Returns credentials that take the certificate of the moment for each new connection."""
    given = folder.current()

    def renewed() -> Any:
        """Called on a thread of gRPC. None: as before."""
        nonlocal given
        now = folder.current()
        if now is given:
            return None
        given = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), renewed, require_client_authentication=True
    )


def _configuration(certificate: "Certificate") -> Any:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], certificate.authorities)


def client_tls(
    certificate: "Certificate", callee: CallerRole, options: Iterable[_Option]
) -> tuple[grpc.ChannelCredentials, list[_Option]]:
    """Returns the credentials of a channel, and its options, by which it expects a process of this role.
    options: those that it would have without TLS."""
    from llmserve.rpc.wires.certificates import server_name

    credentials = grpc.ssl_channel_credentials(certificate.authorities, certificate.key, certificate.chain)
    name = ("grpc.ssl_target_name_override", server_name(certificate.owner.cluster, callee))
    others = [option for option in options if option[0] != _TO_CONNECT]
    return credentials, [*others, name, (_TO_CONNECT, int(HANDSHAKE_SECONDS * 1000))]
