"""AES-256-GCM at rest. The key of the block and its header are authenticated with the payload: neither can
be exchanged for another's.

A nonce is 96 random bits, so one key is good for 2**32 blocks (NIST SP 800-38D, 8.3): petabytes. The library
keeps the GIL, for 0.1 ms a MiB.
"""

import os

from cryptography.exceptions import InvalidTag

from llmserve.core.errors import BlockDamaged
from llmserve.kvstore.formats.elements import ByteArray
from llmserve.kvstore.formats.header import Seal
from llmserve.kvstore.formats.keys import KeyRing

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
