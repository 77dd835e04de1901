"""Section `engine.speculation`: tokens that are proposed cheaply and verified by the model."""

from typing import Literal

from pydantic import Field

from llmserve.config.schema.models import ModelSpec
from llmserve.config.schema.section import ManifestSection, Tokens


class Speculation(ManifestSection):
    """Speculative decoding: a cheap method proposes tokens, and the model verifies all of them in one step.
    The answers are those of the model alone (docs/speculation.md)."""

    method: Literal["none", "ngram", "draft", "eagle", "mtp"] | None = None
    """`ngram` proposes what followed the last tokens earlier in the prompt or the answer. `draft` proposes
    with a small model, `eagle` with a head that was trained for the model, `mtp` with layers of the model
    itself. Without it, the method is `draft` if there is `models.draft`, and otherwise `none`."""
    tokens: Tokens = Field(default=3, ge=1, le=32)
    """At most this many tokens are proposed for each request in each step."""
    lookup_min: Tokens = Field(default=2, ge=1)
    """`ngram` proposes only what followed at least this many of the last tokens."""
    lookup_max: Tokens = Field(default=4, ge=1)
    """`ngram` looks for at most this many of the last tokens."""
    adaptive: bool = True
    """Each engine measures, by the number of requests in a step, how many tokens per second it generates with
    proposals and without, and proposes nothing where that is faster. With `false`, every step proposes."""
    draft: ModelSpec | None = None
    """The draft model, or the eagle head. `models.draft` is a short form of it."""
