"""What the simulated model says: a token that depends on the whole sequence so far, and on nothing else.

So prefill and decode on two engines, one engine alone, and a request that is continued elsewhere
from prompt + tokens so far, all give the same text; a test can compare them.
"""

import hashlib
from array import array
from collections.abc import Collection, Sequence


class TokenSource:
    """`feed` every token of the sequence in order; `next_token` at any time. Token ids are uint32."""

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._digest = hashlib.blake2b(array("I", token_ids).tobytes(), digest_size=8)

    def feed(self, token_id: int) -> None:
        self._digest.update(array("I", (token_id,)).tobytes())

    def next_token(self, banned: Collection[int] = ()) -> int:
        """banned: tokens that must not come now; the nearest one above is taken instead."""
        token = int.from_bytes(self._digest.digest(), "little") % self._vocab_size
        for _ in range(self._vocab_size):
            if token not in banned:
                break
            token = (token + 1) % self._vocab_size
        return token
