"""AES-256-GCM at rest. The key of the block and its header are authenticated with the payload: neither can
be exchanged for another's.

A nonce is 96 random bits, so one key is good for 2**32 blocks (NIST SP 800-38D, 8.3): petabytes. The library
keeps the GIL, for 0.1 ms a MiB.
"""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmserve.core.errors import BlockDamaged, KeyUnknown, StartFailed
from llmserve.kvstore.formats.elements import ByteArray
from llmserve.kvstore.formats.header import Seal

KEY_BYTES = 32
_MAX_ID_LENGTH = 64


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a key of the manifest comes from: the file, or else the environment variable. There it is written
    as 64 hexadecimal digits or in base64. The id is stored with every block, in the clear."""

    key_id: str
    file: Path | None = None
    variable: str = ""

    @property
    def place(self) -> str:
        return str(self.file) if self.file else f"${self.variable}"

    def read(self, environment: Mapping[str, str]) -> bytes:
        """Errors: StartFailed, naming the id and the place."""
        try:
            text = self.file.read_text() if self.file else environment[self.variable]
            key = _decoded(text.strip())
        except KeyError:
            raise self._wrong("is not set") from None
        except OSError as error:
            raise self._wrong(error.strerror or "cannot be read") from None
        except ValueError:  # its message, or that of its cause, may show the text
            key = b""
        if len(key) != KEY_BYTES:
            raise self._wrong(f"must hold {KEY_BYTES} bytes as hexadecimal digits or base64")
        return key

    def _wrong(self, why: str) -> StartFailed:
        return StartFailed(f"encryption key {self.key_id!r}: {self.place} {why}")


class KeyRing:
    """All keys that blocks may be stored under; the last one is the newest, which new blocks get. For
    several threads. Errors: StartFailed for none, for an id twice, and for ids that are no plain words."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        ids = [key_id for key_id, _ in keys]
        if not ids or len(set(ids)) < len(ids) or not all(map(_is_word, ids)):
            raise StartFailed(f"encryption needs keys with different ids of printable ASCII, not {ids}")
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys}
        self.newest_id = ids[-1]

    @classmethod
    def load(cls, sources: Sequence[KeySource], environment: Mapping[str, str]) -> "KeyRing":
        """Sources: the oldest first. Errors: StartFailed."""
        return cls([(source.key_id, source.read(environment)) for source in sources])

    def cipher(self, key_id: str) -> AESGCM:
        """Errors: KeyUnknown."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise KeyUnknown(f"encrypted under the key {key_id[:_MAX_ID_LENGTH]!r}, which is not configured")
        return cipher

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._ciphers)})"


def _decoded(text: str) -> bytes:
    if len(text) == 2 * KEY_BYTES:
        return bytes.fromhex(text)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError from None


def _is_word(key_id: str) -> bool:
    return 0 < len(key_id) <= _MAX_ID_LENGTH and key_id.isascii() and key_id.isprintable()


TAG_BYTES = 16
_NONCE_BYTES = 12


def new_seal(keys: KeyRing) -> Seal:
    return Seal(keys.newest_id, os.urandom(_NONCE_BYTES))


def seal_into(keys: KeyRing, seal: Seal, context: bytes, plain: ByteArray, out: ByteArray) -> None:
    """out: the length of plain and TAG_BYTES more."""
    keys.cipher(seal.key_id).encrypt_into(seal.nonce, plain.data, context, out.data)


def open_into(keys: KeyRing, seal: Seal, context: bytes, sealed: ByteArray, out: ByteArray) -> None:
    """Errors: KeyUnknown; BlockDamaged, and then out holds garbage."""
    cipher = keys.cipher(seal.key_id)
    try:
        cipher.decrypt_into(seal.nonce, sealed.data, context, out.data)
    except (InvalidTag, ValueError):
        raise BlockDamaged(f"not what was encrypted under key {seal.key_id!r}") from None


def context_of(block_key: bytes, header: bytes) -> bytes:
    """What is authenticated beside the payload."""
    return len(block_key).to_bytes(2, "little") + block_key + header
