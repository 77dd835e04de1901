"""Whose a certificate is, and what happens when the files of one change."""

import errno
import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from llmserve.core.errors import NotAuthenticated, StartFailed
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.wires.authority import Authority
from llmserve.rpc.wires.certificates import CertificateFolder, CertificateOwner, owner_and_end
from tests.support.certificates import CLUSTER, credentials_in, make_certificates

WORKER = CallerRole.WORKER


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make(CLUSTER, days=2.0)


def folder_of(place: Path, authority: Authority, role: CallerRole = WORKER, name: str = "*") -> Path:
    authority.issue(place, role, 1.0, name)
    return place / role


@pytest.mark.parametrize("name", ["*", "decode-0", "a/b c", "ü"])
def test_an_owner_is_read_from_its_uri(name: str) -> None:
    owner = CertificateOwner("c1", WORKER, name)
    assert CertificateOwner.of(["https://other", owner.uri]) == owner
    assert owner.dns_name == "worker.c1.llmserve"


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["llmserve://c1/worker"],
        ["llmserve://c1/worker/"],
        ["llmserve:///worker/me"],
        ["llmserve://c1/worker/a/b"],
        ["llmserve://c1/root/me"],
        ["spiffe://c1/worker/me"],
        ["llmserve://c1/worker/a", "llmserve://c1/router/a"],
    ],
)
def test_what_names_no_owner_or_two_is_refused(uris: list[str]) -> None:
    with pytest.raises(NotAuthenticated, match="names no process"):
        CertificateOwner.of(uris)


@pytest.mark.parametrize(
    ("owner", "fits"),
    [
        (CertificateOwner("c1", WORKER, "me"), True),
        (CertificateOwner("c1", WORKER), True),
        (CertificateOwner("c1", WORKER, "other"), False),
        (CertificateOwner("c1", CallerRole.ROUTER), False),
    ],
)
def test_a_certificate_is_its_owners_only(owner: CertificateOwner, fits: bool) -> None:
    if fits:
        owner.check(CallerIdentity(WORKER, "me"))
        return
    with pytest.raises(NotAuthenticated, match="is not that of worker me"):
        owner.check(CallerIdentity(WORKER, "me"))


def test_another_cluster_of_the_same_authority_is_refused(tmp_path: Path, authority: Authority) -> None:
    folder = CertificateFolder(folder_of(tmp_path, authority))
    folder.check(CallerIdentity(WORKER, "me"), [CertificateOwner(CLUSTER, WORKER).uri])
    with pytest.raises(NotAuthenticated, match="is of cluster other, and this is tests"):
        folder.check(CallerIdentity(WORKER, "me"), [CertificateOwner("other", WORKER).uri])


def test_what_is_made_can_be_read(tmp_path: Path, authority: Authority) -> None:
    found = CertificateFolder(folder_of(tmp_path, authority, name="decode-0")).current()
    assert found.owner == CertificateOwner(CLUSTER, WORKER, "decode-0")
    assert found.expires == pytest.approx(time.time() + 86400, abs=60)
    assert owner_and_end(found.chain) == (found.owner, found.expires)
    assert b"PRIVATE" not in repr(found).encode()


def test_private_keys_are_for_one_user(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    keys = [*tmp_path.glob("*/*.key")]
    assert len(keys) == 1 + len(CallerRole)
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_an_authority_is_not_overwritten(tmp_path: Path, authority: Authority) -> None:
    authority.write(tmp_path)
    with pytest.raises(StartFailed, match="has an authority already"):
        Authority.make("other", 1.0).write(tmp_path)
    assert Authority.read(tmp_path).cluster == CLUSTER


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\xff"])
def test_files_that_are_missing_or_wrong_are_named(
    tmp_path: Path, authority: Authority, name: str, content: bytes | None
) -> None:
    folder = folder_of(tmp_path, authority)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(StartFailed, match=str(folder)):
        CertificateFolder(folder)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, authority: Authority) -> None:
    folder, other = folder_of(tmp_path, authority), folder_of(tmp_path / "other", authority)
    (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())
    with pytest.raises(StartFailed, match="MISMATCH"):
        CertificateFolder(folder)


def test_a_process_needs_the_certificate_of_its_role_and_name(tmp_path: Path, authority: Authority) -> None:
    folder_of(tmp_path, authority, name="decode-0")
    assert credentials_in(tmp_path, WORKER, "decode-0").certificates is not None
    with pytest.raises(StartFailed, match="worker decode-0 is not that of worker decode-1"):
        credentials_in(tmp_path, WORKER, "decode-1")
    with pytest.raises(StartFailed, match="router"):
        credentials_in(tmp_path, CallerRole.ROUTER)


def test_the_environment_names_the_folders(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, authority)
    monkeypatch.setenv("LLMSERVE_CERTIFICATES", str(tmp_path))
    assert Credentials.read(WORKER, "me").certificates is not None


def test_a_new_certificate_is_taken_within_a_second(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    folder = CertificateFolder(folder_of(tmp_path, authority), clock)
    first = folder.current()
    folder_of(tmp_path, authority)
    clock.now += 0.9
    assert folder.current() is first
    clock.now += 0.2
    second = folder.current()
    assert second.chain != first.chain
    assert second.authorities == first.authorities
    clock.now += 2.0
    assert folder.current() is second


def test_half_a_change_is_not_taken(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    place = folder_of(tmp_path, authority)
    folder = CertificateFolder(place, clock)
    first = folder.current()
    new = folder_of(tmp_path / "new", authority)
    for name, taken in (("tls.key", False), ("tls.crt", True)):
        (new / name).replace(place / name)
        clock.now += 2.0
        assert (folder.current() is not first) is taken


def test_files_that_are_gone_leave_the_certificate(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    place = folder_of(tmp_path, authority)
    folder = CertificateFolder(place, clock)
    first = folder.current()
    (place / "tls.crt").unlink()
    clock.now += 2.0
    assert folder.current() is first


def test_files_that_could_not_be_read_are_read_again(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many open files, say, when the certificate was renewed: nothing of it changes any more."""
    clock = Clock()
    folder = CertificateFolder(folder_of(tmp_path, authority), clock)
    first = folder.current()
    folder_of(tmp_path, authority)

    def fail(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        for _ in range(3):
            clock.now += 2.0
            assert folder.current() is first
    clock.now += 2.0
    assert folder.current().chain != first.chain
    assert caplog.text.count("too many open files") == 1


def test_the_former_authority_is_accepted_for_a_while(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    folder = CertificateFolder(folder_of(tmp_path, authority), clock)
    former, other = folder.current().authorities, Authority.make(CLUSTER, 1.0)
    folder_of(tmp_path, other)
    clock.now += 2.0
    assert former in folder.current().authorities
    folder_of(tmp_path, other)  # and that outlasts a further certificate
    clock.now += 598.0
    assert former in folder.current().authorities
    clock.now += 2.0
    assert former not in folder.current().authorities


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> list[ssl.SSLObject]:
    """Lets two ends shake hands in memory. Returns that of the server, and that of the client."""
    buffers = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(buffers[0], buffers[1], server_side=True),
        client.wrap_bio(buffers[1], buffers[0], server_hostname=None),
    ]
    waiting = list(ends)
    for _ in range(6):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return ends


def test_both_ends_know_each_other(tmp_path: Path, authority: Authority) -> None:
    worker = CertificateFolder(folder_of(tmp_path, authority))
    manager = CertificateFolder(folder_of(tmp_path, authority, CallerRole.KVMANAGER))
    server, client = meet(manager.current().server, worker.current().client)
    assert manager.owner_at(server).role is WORKER
    assert worker.owner_at(client).role is CallerRole.KVMANAGER


def test_a_server_takes_new_files_for_the_next_connection(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    folder = CertificateFolder(folder_of(tmp_path, authority, name="old"), clock)
    other = Authority.make(CLUSTER, 1.0)
    folder_of(tmp_path, other, name="new")
    client = CertificateFolder(folder_of(tmp_path / "client", other))
    with pytest.raises(ssl.SSLError):
        meet(folder.current().server, client.current().client)
    clock.now += 2.0
    assert client.owner_at(meet(folder.current().server, client.current().client)[1]).name == "new"


def test_strangers_do_not_get_through(tmp_path: Path, authority: Authority) -> None:
    ours = CertificateFolder(folder_of(tmp_path, authority))
    stranger = CertificateFolder(folder_of(tmp_path / "other", Authority.make(CLUSTER, 1.0)))
    with pytest.raises(ssl.SSLError):
        meet(ours.current().server, stranger.current().client)
    with pytest.raises(ssl.SSLError):
        meet(stranger.current().server, ours.current().client)
    naked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    naked.check_hostname, naked.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        meet(ours.current().server, naked)


def test_an_expired_certificate_does_not_get_through(tmp_path: Path, authority: Authority) -> None:
    ours = CertificateFolder(folder_of(tmp_path, authority))
    authority.issue(tmp_path / "old", WORKER, days=-0.001)
    old = CertificateFolder(tmp_path / "old" / "worker")
    with pytest.raises(ssl.SSLError, match="expired"):
        meet(ours.current().server, old.current().client)


def test_no_session_lets_anybody_in_whose_certificate_counts_no_more(
    tmp_path: Path, authority: Authority
) -> None:
    """A ticket would stand for the certificate that its holder had when it was given out."""
    ours = CertificateFolder(folder_of(tmp_path, authority))
    server, client = meet(ours.current().server, ours.current().client)
    server.write(b"x")
    assert client.read(1) == b"x"  # tickets come before it
    assert client.session is None or not client.session.has_ticket


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    tmp_path: Path, authority: Authority
) -> None:
    folder = folder_of(tmp_path, authority)
    key = load_pem_private_key((folder / "tls.key").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (folder / "tls.key").write_bytes(locked)
    with pytest.raises(StartFailed, match="the key needs a password"):
        CertificateFolder(folder)
