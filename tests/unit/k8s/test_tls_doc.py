"""The Certificate of docs/kubernetes.md is what a role needs: calls go through with what is made of it."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.config.plan_types import ProcessRole
from llmserve.k8s.render.volumes import certificate_name
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.server import RpcServer
from llmserve.rpc.wires.authority import Authority

DOC = Path(__file__).parents[3] / "docs" / "kubernetes.md"


def certificate_of_the_doc() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(apiVersion: cert-manager.*?)```", DOC.read_text(), re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def sign(authority: Authority, spec: dict[str, Any], folder: Path) -> None:
    """Writes the Secret as a volume shows it. Keys are in SEC 1, as cert-manager encodes them by default."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    names = [x509.DNSName(name) for name in spec["dnsNames"]]
    uris = [x509.UniformResourceIdentifier(uri) for uri in spec["uris"]]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([*names, *uris]), critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    pem, old = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    folder.mkdir()
    (folder / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "tls.key").write_bytes(key.private_bytes(pem, old, serialization.NoEncryption()))
    (folder / "ca.crt").write_bytes(authority.certificate.public_bytes(pem))


async def test_what_the_doc_says_makes_certificates_that_fit(tmp_path: Path) -> None:
    spec, authority = certificate_of_the_doc()["spec"], Authority.make("any", 1.0)
    assert spec["secretName"] == certificate_name("llmserve", ProcessRole.ROUTER)
    for role in (CallerRole.ROUTER, CallerRole.WORKER):
        text = yaml.safe_dump(spec).replace("router", role)
        sign(authority, yaml.safe_load(text), tmp_path / role)
    server = RpcServer("127.0.0.1:0", Credentials.read(CallerRole.ROUTER, "r", folders=str(tmp_path)))
    address = f"127.0.0.1:{await server.start()}"
    worker = Credentials.read(CallerRole.WORKER, "w", folders=str(tmp_path))
    async with open_channel(address, worker, CallerRole.ROUTER) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30.0)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await server.aclose()
