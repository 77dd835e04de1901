"""`llmserve certs`."""

from pathlib import Path

import pytest

from llmserve.cli import main
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.wires.certificates import CertificateFolder


def test_each_role_gets_a_certificate_of_the_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certs", "init", str(tmp_path), "--cluster", "mine", "--days", "7"]) == 0
    shown = capsys.readouterr().out
    for role in CallerRole:
        owner = CertificateFolder(tmp_path / role).current().owner
        assert (owner.cluster, owner.role, owner.name) == ("mine", role, "*")
        assert f"{role:<14}{'*':<16}{7.0:>9.1f}  CN={role} *" in shown


def test_certificates_are_replaced_one_by_one_or_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certs", "init", str(tmp_path)]) == 0
    before = {role: (tmp_path / role / "tls.crt").read_bytes() for role in CallerRole}
    one = ["--role", "worker", "--name", "decode-0", "--days", "2"]
    assert main(["certs", "issue", str(tmp_path), *one]) == 0
    changed = {role for role in CallerRole if (tmp_path / role / "tls.crt").read_bytes() != before[role]}
    assert changed == {CallerRole.WORKER}
    assert CertificateFolder(tmp_path / "worker").current().owner.name == "decode-0"
    assert main(["certs", "issue", str(tmp_path)]) == 0
    assert CertificateFolder(tmp_path / "worker").current().owner.name == "*"
    assert main(["certs", "show", str(tmp_path)]) == 0
    assert "CN=operator *" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["issue"], "is this a folder of `llmserve certs init`"),
        (["show"], "has no folder of a role"),
        (["issue", "--name", "decode-0"], "--name needs one --role"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    action, *rest = arguments
    assert main(["certs", action, str(tmp_path), *rest]) != 0
    assert told in capsys.readouterr().err


def test_a_second_authority_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs", "init", str(tmp_path)]) == 0
    assert main(["certs", "init", str(tmp_path)]) != 0
    assert "has an authority already" in capsys.readouterr().err


def test_a_role_that_is_none_is_answered_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["certs", "issue", str(tmp_path), "--role", "nobody"])
    assert "(choose from 'apiserver', 'router', 'worker'," in capsys.readouterr().err
