"""What a process shows with its calls, and what is asked of those that call it."""

import stat
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from llmserve.core.errors import NotAuthenticated, StartFailed
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS, SECRET_VARIABLE, Credentials, make_secret, shown_by
from tests.support.certificates import credentials_in, make_certificates

SECRET = b"s" * 64
ROUTER = Credentials(CallerIdentity(CallerRole.ROUTER, "router-0"), SECRET)


def worker(name: str = "decode-0", secret: bytes = SECRET) -> Credentials:
    return Credentials(CallerIdentity(CallerRole.WORKER, name), secret)


@pytest.mark.parametrize("name", ["decode-0", "", "a/b", "ä" * 80, "x" * 512, "50%", "jürgen"])
def test_who_calls_is_known(name: str) -> None:
    caller = ROUTER.caller_of(worker(name).metadata())
    assert caller == shown_by(worker(name).metadata()) == CallerIdentity(CallerRole.WORKER, name)


def _changed(part: int, text: str) -> tuple[tuple[str, str], ...]:
    ((key, value),) = worker().metadata()
    parts = value.split("/")
    parts[part] = text
    return ((key, "/".join(parts)),)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        (("authorization", "Bearer s"),),
        worker(secret=b"t" * 64).metadata(),
        worker("x" * 513).metadata(),
        _changed(0, "operator"),
        _changed(0, "root"),
        _changed(1, "decode-1"),
        _changed(2, "0" * 64),
        _changed(2, ""),
        _changed(2, "ü"),
        ((worker().metadata()[0][0], "/"),),
        ((worker().metadata()[0][0], ""),),
    ],
)
def test_others_are_refused(metadata: tuple[tuple[str, str], ...] | None) -> None:
    with pytest.raises(NotAuthenticated, match="credentials"):
        ROUTER.caller_of(metadata)


def test_any_name_is_plain_metadata() -> None:
    ((_, shown),) = worker("jürgen/\n").metadata()
    assert shown.isascii()
    assert shown.isprintable()


def test_without_a_secret_nothing_is_shown_or_asked() -> None:
    assert NO_CREDENTIALS.metadata() == ()
    assert NO_CREDENTIALS.caller_of(()) is None
    assert shown_by(()) is None


def test_the_secret_is_in_no_text() -> None:
    assert "sss" not in repr(ROUTER)
    assert "sss" not in str(ROUTER.metadata())


def test_a_secret_is_made_for_one_user_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    make_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 64
    with pytest.raises(StartFailed, match=r"secret: the cluster's secret cannot be written: File exists"):
        make_secret(path)
    monkeypatch.setenv(SECRET_VARIABLE, str(path))
    read = Credentials.read(CallerRole.WORKER, "decode-0")
    assert read == Credentials.read(CallerRole.WORKER, "decode-0", str(path))
    assert read.secret == path.read_bytes()
    monkeypatch.delenv(SECRET_VARIABLE)
    assert Credentials.read(CallerRole.WORKER, "decode-0").secret is None


def test_a_secret_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"none: the cluster's secret cannot be read: No such file"):
        Credentials.read(CallerRole.WORKER, "decode-0", str(tmp_path / "none"))
    (tmp_path / "short").write_text("x" * 31 + "\n")
    with pytest.raises(StartFailed, match="fewer than 32 characters"):
        Credentials.read(CallerRole.WORKER, "decode-0", str(tmp_path / "short"))


def test_when_the_certificate_in_use_expires_is_a_metric(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    own, registry, plain = (
        credentials_in(tmp_path, CallerRole.WORKER),
        CollectorRegistry(),
        CollectorRegistry(),
    )
    own.show_expiry(registry)
    ROUTER.show_expiry(plain)
    assert own.certificates is not None
    name, expires = "cluster_certificate_expires_timestamp_seconds", own.certificates.current().expires
    assert registry.get_sample_value(name, {"certificate": "worker"}) == expires
    assert list(plain.collect()) == []
