"""Sections `engine`, `kv_cache` and `transfer`: what one worker is made of."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, Live, ManifestSection, Planned, VllmOnly


class SimSpec(ManifestSection):
    """The simulated engine: real block accounting and prefix cache, a timing model, no weights."""

    prefill_tokens_per_second: Annotated[
        float,
        KeyUnit("tokens/second"),
        Field(ge=0, description="Speed of prompt computation. 0: it takes no time."),
    ] = 0.0
    decode_step_seconds: Annotated[
        float, KeyUnit("seconds"), Field(ge=0, description="Time of a decode step, whatever its batch.")
    ] = 0.0
    decode_seconds_per_sequence: Annotated[
        float, KeyUnit("seconds"), Field(ge=0, description="What each sequence adds to a decode step.")
    ] = 0.0
    blocks: Annotated[int, KeyUnit("blocks"), Field(ge=2, description="KV blocks of one engine.")] = 1024
    block_size_tokens: Annotated[
        int, KeyUnit("tokens"), Field(ge=1, le=1024, description="Tokens in a KV block.")
    ] = 16
    vocab_size: Annotated[
        int, KeyUnit("tokens"), Field(ge=16, description="Token ids are drawn below this number.")
    ] = 32000


class EnvVariable(ManifestSection):
    """A variable of the environment."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Such as `VLLM_ATTENTION_BACKEND`.")
    ]
    value: Annotated[str, Field(description="Text: a number is written in quotes.")]


class EngineConfig(ManifestSection):
    """One engine; every worker has one of its own."""

    kind: Annotated[
        Literal["vllm", "sim"], Field(description="`vllm`: the real one. `sim`: simulated, see `engine.sim`.")
    ] = "vllm"
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        VllmOnly(),
        Field(description="What the engines run on. `auto`: GPUs if there are any, else the CPU."),
    ] = "auto"
    tensor_parallel: Annotated[
        int,
        KeyUnit("ranks"),
        VllmOnly(),
        Field(ge=1, description="GPUs (or, on CPU, groups of cores) that share each layer of one engine."),
    ] = 1
    pipeline_parallel: Annotated[
        int,
        KeyUnit("ranks"),
        Planned("pipeline-parallel KV transfer"),
        Field(ge=1, description="Stages of layers over which one engine is split."),
    ] = 1
    max_model_len: Annotated[
        int | None,
        KeyUnit("tokens"),
        Field(gt=0, description="Longest prompt plus answer. Without it, what the model was made for."),
    ] = None
    max_logprobs: Annotated[
        int,
        KeyUnit("tokens"),
        Field(
            ge=-1,
            description="Most log probabilities that a client gets for each token, with `top_logprobs` or "
            "`logprobs`. -1: those of the whole vocabulary.",
        ),
    ] = 20
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        VllmOnly(),
        Field(description="Type of weights and activations. `auto`: the model's own."),
    ] = "auto"
    speculative_tokens: Annotated[
        int,
        KeyUnit("tokens"),
        Planned("speculative decoding"),
        Field(ge=0, description="Tokens proposed by the draft model in each step. 0: none."),
    ] = 0
    chunked_prefill: Annotated[
        bool,
        Field(description="Compute a long prompt in pieces, between the decode steps of other requests."),
    ] = True
    max_batched_tokens: Annotated[
        int | None,
        KeyUnit("tokens"),
        Field(gt=0, description="Most tokens computed in one engine step. Without it, the engine's default."),
    ] = None
    min_decode_slots: Annotated[
        int,
        KeyUnit("requests"),
        Planned("placement by phase"),
        Field(ge=0, description="Places in the batch kept for requests that decode."),
    ] = 0
    max_decode_concurrency: Annotated[
        int,
        KeyUnit("requests"),
        Field(
            ge=1,
            description="Most requests that one engine runs at the same time. Each choice (`n`) is one, and "
            "all choices of a request run on one engine.",
        ),
    ] = 64
    prefill_long_prompt_tokens: Annotated[
        int | None,
        KeyUnit("tokens"),
        Field(
            gt=0,
            description="Of a longer prompt, this many tokens are computed in one step, so that shorter ones "
            "and answers go on beside it. Without it, as many as there is room for.",
        ),
    ] = None
    enforce_eager: Annotated[
        bool | None,
        VllmOnly(),
        Field(
            description="Do not compile the model: quicker start, slower tokens. Without it, true on CPU and "
            "false on GPU."
        ),
    ] = None
    tool_call_parser: Annotated[
        str | None,
        Field(
            min_length=1,
            description="How the model writes tool calls (vLLM's parser names, such as `hermes`, "
            "`llama3_json`, `mistral`). Without it, tools are off.",
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Field(
            min_length=1,
            description="How the model marks its reasoning (vLLM's parser names, such as `qwen3`, "
            "`deepseek_r1`). Without it, reasoning is part of the answer.",
        ),
    ] = None
    grammar_backend: Annotated[
        Literal["xgrammar", "guidance"],
        Field(
            description="What makes an answer follow a JSON schema, regular expression or grammar, in the "
            "apiservers and all engines alike. `xgrammar` serves every kind of structural tag, which tool "
            "calls need; `guidance` knows more keywords of JSON schema. What the chosen one does not know is "
            "refused with 400."
        ),
    ] = "xgrammar"
    env: Annotated[
        tuple[EnvVariable, ...],
        Field(
            strict=False,
            description="Variables for vLLM, in the engines and apiservers, for what has no key here. Those "
            "of the shell that `llmserve up` was started in do not reach them (docs/operations.md).",
        ),
    ] = ()
    hang_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(
            ge=3,
            description="An engine that answers nothing for this long, while its processes do nothing, "
            "hangs: its requests go on elsewhere and it is started again. After a third of this time it gets "
            "no requests.",
        ),
    ] = 15.0
    longest_step_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(
            ge=3,
            description="The same for an engine whose processes still work: longer than a step on a long "
            "prompt, or compiling on first use, may take.",
        ),
    ] = 300.0
    sim: Annotated[SimSpec, Field(description="Settings of `kind: sim`.")] = SimSpec()


class KvCacheConfig(ManifestSection):
    """The KV blocks of an engine."""

    page_size_kb: Annotated[
        int | None,
        KeyUnit("KiB"),
        Field(
            gt=0,
            description="Size of a KV block in one layer on one rank; the largest multiple of 16 tokens that "
            "fits is used. Exclusive with `block_size_tokens`.",
        ),
    ] = None
    block_size_tokens: Annotated[
        int | None,
        KeyUnit("tokens"),
        Field(
            gt=0,
            multiple_of=16,
            description="Tokens in a KV block. Without it, the engine's default (128 on CPU).",
        ),
    ] = None
    hbm_dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"],
        VllmOnly(),
        Field(description="Type of the KV in device memory. `auto`: that of the model."),
    ] = "auto"
    memory_gb: Annotated[
        float,
        KeyUnit("GiB"),
        VllmOnly(),
        Field(gt=0, description="Device memory for the KV blocks of each rank."),
    ] = 1.0
    hot_keep_secs: Annotated[
        float,
        KeyUnit("seconds"),
        Field(
            ge=0, description="How long a block that was just used is safe from eviction in DRAM and NVMe."
        ),
    ] = 0.0
    tenant_hotset_gb: Annotated[
        float,
        KeyUnit("GiB"),
        Field(ge=0, description="What each tenant keeps in DRAM, and in NVMe, whatever the others do."),
    ] = 0.0
    prefetch_on_prefix: Annotated[
        bool,
        Live(("router",)),
        Field(
            description="While a request waits for its turn, bring up to DRAM what the KV store has of its "
            "prompt in NVMe or object storage, as far as there is free room."
        ),
    ] = False


class TransferConfig(ManifestSection):
    """How KV moves between engines."""

    mode: Annotated[
        Literal["auto", "pull", "push"],
        Field(
            description="`pull`: decode reads the KV when prefill is done. `push`: prefill writes the KV of "
            "each layer to decode while it still computes, which hides the transfer, but takes decode's "
            "blocks for that long. `auto`: push long prompts, pull the others."
        ),
    ] = "auto"
    push_min_tokens: Annotated[
        int,
        KeyUnit("tokens"),
        Field(ge=1, description="With `mode: auto`: prompts from this length on are pushed."),
    ] = 512
    engine_order: Annotated[
        tuple[Literal["nixl", "ucx", "nccl"], ...],
        Field(
            strict=False,
            description="Transports in the order to prefer them. After these come shm (on one host) and "
            "tcp, which are always there, so an empty list means these alone. `nccl` is gloo without a GPU.",
        ),
    ] = ("nixl", "ucx", "nccl")
    slow_factor: Annotated[
        float,
        Field(
            ge=1,
            description="Each pair of engines measures its transports. The first that works is used, "
            "unless a later one is more than this many times faster.",
        ),
    ] = 3.0
    slow_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="A transfer that runs below this share of its measured speed counts as failed, and "
            "goes on over the next transport. Never before half a second.",
        ),
    ] = 0.1
    verify: Annotated[
        Literal["off", "sampled", "always"],
        Field(
            description="Compare digests of what arrived with what was sent: of no piece, of one in 16, "
            "of all. A difference is a failed transfer."
        ),
    ] = "sampled"
    on_failure: Annotated[
        Literal["recompute", "fail"],
        Field(
            description="When KV cannot be moved: `recompute` it on the decode engine, or `fail` the request."
        ),
    ] = "recompute"
    lease_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(
            ge=1,
            le=3600,
            description="How long finished KV is kept for the decode engine before it is freed.",
        ),
    ] = 30.0
