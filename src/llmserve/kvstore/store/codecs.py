"""A tier's codecs, one for each shape of parts. Scratch memory is theirs: one thread at a time."""

from collections.abc import Callable

from llmserve.kvstore.formats import BlockCodec, BlockShape, Element, grouped

MakeCodec = Callable[[BlockShape], BlockCodec]
_MOST = 16  # a cluster has one or two; workers may be replaced by others


class Codecs:
    def __init__(self, make: MakeCodec) -> None:
        self._make = make
        self._made: dict[tuple[str, int], BlockCodec] = {}

    def of(self, shape: str, size_bytes: int) -> BlockCodec:
        """shape: as text, of so many bytes; empty: what they mean is not known. Errors: FormatUnknown."""
        name = (shape, size_bytes)
        if name not in self._made:
            if len(self._made) >= _MOST:
                self._made.clear()
            self._made[name] = self._make(
                BlockShape.parse(shape) if shape else grouped(Element.OPAQUE, size_bytes)
            )
        return self._made[name]
