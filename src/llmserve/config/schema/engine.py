"""Sections `engine`, `kv_cache` and `transfer`: the parts of a worker."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from llmserve.config.schema.models import ModelSpec
from llmserve.config.schema.section import (
    ForAllModels,
    GiB,
    KeyUnit,
    Live,
    ManifestSection,
    Planned,
    Requests,
    Seconds,
    Tokens,
    VllmOnly,
)

Ranks = Annotated[int, KeyUnit("ranks")]


class SimSpec(ManifestSection):
    """Settings of `kind: sim`. The simulated engine has real block accounting, a prefix cache and a timing
    model, and no weights. Its answers are random words, whatever a grammar asks for, and it refuses requests
    with logprobs."""

    prefill_tokens_per_second: Annotated[float, KeyUnit("tokens/second")] = Field(default=0.0, ge=0)
    """Prompts are computed at this speed. With 0 they take no time."""
    decode_step_seconds: Seconds = Field(default=0.0, ge=0)
    """A decode step takes this long, whatever its batch."""
    decode_seconds_per_sequence: Seconds = Field(default=0.0, ge=0)
    """Each sequence adds this much to a decode step."""
    proposed_token_seconds: Seconds = Field(default=0.0, ge=0)
    """Each token that is proposed and verified adds this much to a decode step."""
    acceptance: float = Field(default=0.7, ge=0, le=1)
    """A proposed token is right with this probability, if all before it in the same step were."""
    adapter_load_seconds: Seconds = Field(default=0.0, ge=0)
    """An adapter takes this long to load into a slot."""
    blocks: Annotated[int, KeyUnit("blocks")] = Field(default=1024, ge=2)
    """One engine has this many KV blocks."""
    block_size_tokens: Tokens = Field(default=16, ge=1, le=1024)
    """A KV block holds this many tokens."""
    vocab_size: Tokens = Field(default=32000, ge=16)
    """Token ids are below this number."""


class EnvVariable(ManifestSection):
    """A variable of the environment."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The variable's name, such as `VLLM_ATTENTION_BACKEND`."""
    value: str
    """The variable's value is text: write a number in quotes."""


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


class EngineConfig(ManifestSection):
    """The engine of a worker. Every worker has one of its own."""

    kind: Literal["vllm", "sim"] = "vllm"
    """`vllm` is the real engine. `sim` is a simulated one: see `engine.sim`."""
    task: Annotated[Literal["generate", "embed", "classify"], VllmOnly()] = "generate"
    """What the model does: it answers prompts, makes an embedding of each (`/v1/embeddings`, `/v1/score`,
    `/v1/rerank`), or classifies them (`/classify`; with one label: `/v1/score`, `/v1/rerank`). The last two
    need `deployment.disaggregated: false`."""
    device: Annotated[Literal["auto", "cpu", "cuda"], VllmOnly()] = "auto"
    """The engines run on this device. `auto` uses GPUs if there are any, and otherwise the CPU."""
    tensor_parallel: Annotated[Ranks, VllmOnly()] = Field(default=1, ge=1)
    """This many GPUs (or groups of cores, on a CPU) share each layer of one engine."""
    pipeline_parallel: Annotated[Ranks, Planned("pipeline-parallel KV transfer")] = Field(default=1, ge=1)
    """One engine is split into this many stages of layers."""
    max_model_len: Tokens | None = Field(default=None, gt=0)
    """A prompt and its answer have at most this many tokens together. Without it, the model's own limit
    applies."""
    max_logprobs: Tokens = Field(default=20, ge=-1)
    """A client gets at most this many log probabilities for each token, with `top_logprobs` or `logprobs`. -1
    allows those of the whole vocabulary."""
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], VllmOnly()] = "auto"
    """Weights and activations have this type. `auto` uses the model's own."""
    speculative_tokens: Tokens = Field(default=0, ge=0, le=32)
    """`models.draft` proposes this many tokens in each step: the short form of `engine.speculation.tokens`.
    0 leaves that as it is."""
    speculation: Speculation = Speculation()
    chunked_prefill: bool = True
    """A long prompt is computed in pieces, between the decode steps of other requests."""
    max_batched_tokens: Tokens | None = Field(default=None, gt=0)
    """One engine step computes at most this many tokens. Without it, the engine's default applies."""
    min_decode_slots: Requests = Field(default=0, ge=0)
    """This many places of the batch are kept for requests that decode. An engine that decodes computes at
    most `max_decode_concurrency` less these prompts at the same time; further prompts wait in the router."""
    max_decode_concurrency: Requests = Field(default=64, ge=1)
    """One engine runs at most this many requests at the same time. Each choice (`n`) counts as one, and all
    choices of a request run on one engine."""
    prefill_long_prompt_tokens: Tokens | None = Field(default=None, gt=0)
    """One step computes at most this many tokens of one prompt, so that shorter prompts and answers continue
    beside a long prompt. Without it, a step computes as many as it has room for."""
    enforce_eager: Annotated[bool | None, VllmOnly()] = None
    """The model is not compiled: the engine starts faster, and tokens are slower. Without it, the value is
    true on a CPU and false on a GPU."""
    optimization_level: Annotated[Literal[0, 1, 2, 3] | None, VllmOnly()] = None
    """vLLM's level, from 0 (a fast start) to 3 (fast tokens), decides what is compiled and which CUDA graphs
    are captured; `options.compilation_config` has the details. Without it, vLLM's default applies. It has no
    effect with `enforce_eager`."""
    quantization: Annotated[str | None, VllmOnly()] = Field(default=None, min_length=1)
    """vLLM quantizes the weights by the method of this name when it loads them, such as `fp8`. A model that
    is stored quantized needs no key."""
    tool_call_parser: str | None = Field(default=None, min_length=1)
    """vLLM's parser of this name reads the tool calls that the model writes, such as `hermes`, `llama3_json`
    or `mistral`. Without it, tools are off."""
    reasoning_parser: str | None = Field(default=None, min_length=1)
    """vLLM's parser of this name separates the model's reasoning from its answer, such as `qwen3` or
    `deepseek_r1`. Without it, reasoning is part of the answer."""
    grammar_backend: Literal["xgrammar", "guidance"] = "xgrammar"
    """This library makes an answer follow a JSON schema, regular expression or grammar, in the apiservers and
    in all engines. `xgrammar` serves every kind of structural tag, which tool calls need; `guidance` knows
    more keywords of JSON schema. A request that needs what the library does not know is rejected with 400."""
    options: Annotated[dict[str, JsonValue], VllmOnly()] = {}  # noqa: RUF012 - pydantic copies it
    """Arguments of vLLM's engine that have no key here, by the names of its `EngineArgs`, such as
    `{async_scheduling: false, compilation_config: {cudagraph_capture_sizes: [1, 8]}}`. vLLM checks their
    types when an engine starts. KV that was stored with other options is not used."""
    env: tuple[EnvVariable, ...] = Field(default=(), strict=False)
    """Variables for vLLM in the engines and apiservers, for settings that have no key here. Variables of the
    shell that started `llmserve up` do not reach them (docs/operations.md)."""
    hang_seconds: Seconds = Field(default=15.0, ge=3)
    """An engine that answers nothing for this long while its processes use no CPU hangs: its requests
    continue on other engines, and it is started again. After a third of this time it gets no requests."""
    longest_step_seconds: Seconds = Field(default=300.0, ge=3)
    """An engine that answers nothing for this long hangs even if its processes use the CPU. A step on a long
    prompt, or compiling on first use, must take less."""
    sim: SimSpec = SimSpec()


class KvCacheConfig(ManifestSection):
    """The KV blocks of an engine."""

    page_size_kb: Annotated[int | None, KeyUnit("KiB")] = Field(default=None, gt=0)
    """A KV block has at most this size in one layer on one rank: it holds the largest multiple of 16 tokens
    that fits. It excludes `block_size_tokens`."""
    block_size_tokens: Tokens | None = Field(default=None, gt=0, multiple_of=16)
    """A KV block holds this many tokens. Without it, the engine's default applies (128 on a CPU)."""
    hbm_dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"], VllmOnly()
    ] = "auto"
    """KV has this type in device memory. `auto` uses that of the model."""
    memory_gb: Annotated[GiB, VllmOnly()] = Field(default=1.0, gt=0)
    """Each rank has this much device memory for KV blocks."""
    hot_keep_secs: Annotated[Seconds, ForAllModels()] = Field(default=0.0, ge=0)
    """A block is safe from eviction in DRAM and NVMe for this long after its last use."""
    tenant_hotset_gb: Annotated[GiB, ForAllModels()] = Field(default=0.0, ge=0)
    """Each tenant keeps this much in DRAM, and in NVMe, whatever other tenants do."""
    prefetch_on_prefix: Annotated[bool, ForAllModels(), Live(("router",))] = False
    """While a request waits for its turn, blocks of its prompt that the KV store has in NVMe or object
    storage are copied to DRAM, as far as there is free room."""


class TransferConfig(ManifestSection):
    """How KV moves between engines."""

    mode: Literal["auto", "pull", "push"] = "auto"
    """With `pull`, decode reads the KV when prefill is done. With `push`, prefill writes the KV of each layer
    to decode while it computes the next ones, which hides the transfer but occupies decode's blocks for that
    long. `auto` measures both for each kind of pair and length of prompt, and takes the one that costs less
    time."""
    push_min_tokens: Tokens = Field(default=512, ge=1)
    """With `mode: auto`, shorter prompts are always pulled."""
    engine_order: tuple[Literal["nixl", "ucx", "nccl"], ...] = Field(
        default=("nixl", "ucx", "nccl"), strict=False
    )
    """Transports in the order of preference. shm (on one host) and tcp always follow them, so an empty list
    means these two alone. `nccl` is gloo on machines without a GPU; engines on GPUs use it only where this
    list is written out. In Kubernetes, `nixl` is in the default only with `deployment.k8s.rdma_resource`;
    with `security.mtls`, see `security.mtls.plain_transports`."""
    slow_factor: float = Field(default=3.0, ge=1)
    """Each pair of engines measures its transports. The first one that works is used, unless a later one is
    more than this many times faster."""
    slow_share: float = Field(default=0.1, gt=0, le=1)
    """A transfer that runs below this share of its measured speed counts as failed, and continues over the
    next transport. No transfer counts as slow before half a second."""
    verify: Literal["off", "sampled", "always"] = "sampled"
    """Digests of what arrived are compared with digests of what was sent, for no piece, for one piece in 16,
    or for all pieces. A difference is a failed transfer."""
    on_failure: Literal["recompute", "fail"] = "recompute"
    """When KV cannot be moved, the decode engine recomputes it (`recompute`) or the request fails
    (`fail`)."""
    lease_seconds: Seconds = Field(default=30.0, ge=1, le=3600)
    """Finished KV is kept this long for the decode engine before it is freed."""

    @property
    def gpu_order(self) -> tuple[str, ...]:
        """`engine_order` of engines on GPUs. There NCCL would make groups of its own beside vLLM's, which
        nobody has tried: it is among them only when the manifest names it."""
        is_named = "engine_order" in self.model_fields_set
        return tuple(name for name in self.engine_order if is_named or name != "nccl")
