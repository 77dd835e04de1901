"""`llmserve certs`: certificates for the processes of one machine (`security.mtls.directory`)."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmserve.cli.command import EXIT_OK, Actions, Command, positive
from llmserve.core.errors import InvalidRequest, NotAuthenticated, NotFound
from llmserve.rpc.callers import CallerRole

_ABOUT = """\
Certificates by which the processes of a cluster know each other (security.mtls.directory in the manifest).
`init` makes an authority and a certificate for each role; `issue` replaces certificates, which a running
cluster takes without a restart; `show` says whose they are and when they expire. Whoever can read ca/ca.key
can make a certificate of any role: keep it elsewhere while no certificate is to be made.
"""
_DAY_SECONDS = 86400.0

Act = Callable[[argparse.Namespace], None]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = Actions[Act](parser, _add_directory)
    init = actions.add("init", _init, "make an authority, and a certificate for each role")
    init.add_argument(
        "--cluster", metavar="NAME", default="llmserve", help="metadata.name (default: %(default)s)"
    )
    init.add_argument("--authority-days", metavar="N", type=positive, default=3650.0, help="default: 3650")
    init.add_argument(
        "--days", metavar="N", type=positive, default=90.0, help="of each certificate (default: 90)"
    )
    issue = actions.add("issue", _issue, "replace the certificates of roles, all by default")
    issue.add_argument(
        "--role",
        choices=[role.value for role in CallerRole],
        action="append",
        help="only of this role; may be repeated",
    )
    issue.add_argument("--name", metavar="NAME", default="*", help="only for this process, such as decode-0")
    issue.add_argument("--days", metavar="N", type=positive, default=90.0, help="default: 90")
    actions.add("show", _show, "print whose the certificates are, and when they expire")


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the one with a folder for each role")


def _run(options: argparse.Namespace) -> int:
    act: Act = options.action
    act(options)
    return EXIT_OK


def _init(options: argparse.Namespace) -> None:
    # Here and below, because other commands need not wait for libraries of cryptography.
    from llmserve.rpc.wires.authority import Authority

    authority = Authority.make(options.cluster, options.authority_days)
    authority.write(options.directory)
    for role in CallerRole:
        authority.issue(options.directory, role, options.days)
    _show(options)


def _issue(options: argparse.Namespace) -> None:
    from llmserve.rpc.wires.authority import Authority

    if options.name != "*" and len(options.role or ()) != 1:
        raise InvalidRequest("--name needs one --role")
    authority = Authority.read(options.directory)
    for role in options.role or CallerRole:
        authority.issue(options.directory, CallerRole(role), options.days, options.name)
    _show(options)


def _show(options: argparse.Namespace) -> None:
    rows = list(_rows(options.directory))
    if not rows:
        raise NotFound(f"{options.directory} has no folder of a role with a certificate")
    print(f"{'ROLE':<14}{'NAME':<16}{'DAYS LEFT':>9}  SUBJECT")
    for role, name, days, subject in rows:
        print(f"{role:<14}{name:<16}{days:>9.1f}  {subject}")


def _rows(directory: Path) -> Iterator[tuple[str, str, float, str]]:
    """Yields role, name, days that are left, and subject."""
    from llmserve.rpc.wires.certificates import CERTIFICATE_FILE, owner_and_end, subject_of

    for path in sorted(directory.glob(f"*/{CERTIFICATE_FILE}")):
        try:
            chain = path.read_bytes()
            owner, expires = owner_and_end(chain)
        except (OSError, ValueError, NotAuthenticated) as error:
            raise InvalidRequest(f"{path}: {error}") from error
        yield owner.role, owner.name, (expires - time.time()) / _DAY_SECONDS, subject_of(chain)


COMMAND = Command("certs", "make and show certificates of a cluster's processes", _ABOUT, _configure, _run)
