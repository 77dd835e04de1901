"""gRPC over TLS: both ends show their certificates, those of the moment in which they connect."""

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from llmserve.rpc.credentials import CallerRole

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
    certificate: "Certificate", callee: CallerRole
) -> tuple[grpc.ChannelCredentials, tuple[str, str]]:
    """Returns the credentials of a channel, and the option by which it expects a process of this role."""
    from llmserve.rpc.wires.certificates import server_name

    credentials = grpc.ssl_channel_credentials(certificate.authorities, certificate.key, certificate.chain)
    return credentials, ("grpc.ssl_target_name_override", server_name(certificate.owner.cluster, callee))
