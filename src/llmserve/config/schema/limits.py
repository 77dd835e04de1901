"""Section `security.limits`: how much one client, and one request, may ask of an apiserver."""

from typing import Annotated

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, ManifestSection, Requests, Seconds, Tokens

KiB = Annotated[int, KeyUnit("KiB")]


class SecurityLimits(ManifestSection):
    """How much one client, and one request, may ask of an apiserver. Whatever is more is refused before it
    costs much, with a 4xx that names the field and the limit. Other limits are `engine.max_logprobs` (log
    probabilities), `engine.max_model_len` (tokens), those of section `batches` (files), and those of
    `budgets` (load)."""

    body_kib: KiB = Field(default=32 * 1024, ge=1, le=1024 * 1024)
    """The body of a request may have this size (413)."""
    body_seconds: Seconds = Field(default=300.0, gt=0, le=3600)
    """The body of a request must arrive within this time, and each piece of an uploaded file (408)."""
    headers: int = Field(default=100, ge=8, le=10_000)
    """A request may have this many headers (431)."""
    header_kib: KiB = Field(default=32, ge=1, le=1024)
    """The path and the headers of a request may have this size together (431)."""
    header_seconds: Seconds = Field(default=60.0, gt=0, le=3600)
    """The headers of a request must arrive within this time from its first byte, or from the start of the
    connection (408)."""
    answer_seconds: Seconds = Field(default=120.0, gt=0, le=3600)
    """A client that takes nothing of its answer for this long is disconnected, and its request is ended."""
    connections_per_address: int = Field(default=4096, ge=1)
    """Each apiserver serves this many connections of one address at a time (429). Behind a proxy, all
    clients have its address."""
    choices: int = Field(default=128, ge=1, le=16_384)
    """`n` and `best_of` may be this large."""
    prompts: Requests = Field(default=2048, ge=1, le=1_000_000)
    """A request may have this many prompts, conversations or inputs, each of them counted `n` times."""
    stop: int = Field(default=16, ge=1, le=10_000)
    """Lists of strings that end an answer (`stop`, `stop_sequences`) and lists of tokens that do
    (`stop_token_ids`) may have this many entries."""
    stop_characters: int = Field(default=1024, ge=1)
    """Each string that ends an answer may have this length."""
    max_tokens: Tokens | None = Field(default=None, ge=1)
    """Clients may ask for this many tokens of an answer. Without it, only the length that the model allows
    is a limit."""
    logit_bias: int = Field(default=1024, ge=1)
    """`logit_bias`, `allowed_token_ids` and `bad_words` may have this many entries."""
    cache_salt_characters: int = Field(default=128, ge=1, le=128)
    """`cache_salt` may have this length."""
    grammar_kib: KiB = Field(default=512, ge=1, le=16 * 1024)
    """A grammar, JSON schema or list of choices may have this size."""
    grammar_seconds: Annotated[int, KeyUnit("seconds")] = Field(default=10, ge=1, le=300)
    """The compilation of a grammar may take this much time of the processor. It runs in a process of its
    own."""


DEFAULT_LIMITS = SecurityLimits()
