"""The certificate of the HTTP API (`security.tls`), whose files are read again when they change."""

import logging
import os
import ssl
from pathlib import Path

from llmserve.core.errors import StartFailed
from llmserve.rpc.wires.certificates import no_password

_log = logging.getLogger(__name__)


class HttpCertificate:
    """context: of all connections. New ones show what `renew` has read last."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Errors: StartFailed."""
        self._certificate, self._key = certificate, key
        self._seen = self._signature()  # when they were read last
        self._failure = ""  # why they cannot be read now
        try:
            self.context = self._read()
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise StartFailed(f"security.tls: {certificate}, {key}: {error}") from error

    def renew(self) -> None:
        """Looks at the files. While they make no sense, as in the middle of a change, all stays as it is."""
        seen = self._signature()
        if seen == self._seen:
            return
        try:
            self._read()
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:  # what is wrong need not be in the files: it is tried again
            if str(error) != self._failure:
                _log.warning("the HTTP API keeps its certificate: %s: %s", self._certificate, error)
            self._failure = str(error)
        else:
            self._seen, self._failure = seen, ""
            _log.info("the HTTP API has a new certificate: %s", self._certificate)

    def _read(self) -> ssl.SSLContext:
        """Errors: OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._certificate, self._key, password=no_password)
        return context

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        """Returns what changes with the files; nothing while one is missing."""
        try:
            stats = [os.stat(path) for path in (self._certificate, self._key)]
        except OSError:
            return ()
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in stats)
