"""The weights of a Llama from GGUF are those that transformers reads, bit for bit; others are left to it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from llmserve.models.convert import llama_names, llama_weights

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, WORDS = 128, 2, 4, 2, 192, 64
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_v": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}
KINDS = gguf.GGMLQuantizationType


def write(path: Path, kind: Any, *, tied: bool, more: tuple[str, ...] = ()) -> None:
    """more: tensors that a plain Llama has not."""
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(WORDS)

    def add(name: str, shape: tuple[int, ...], kind: Any = KINDS.F32) -> None:
        values = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (WORDS, HIDDEN), kind)
    add("output_norm.weight", (HIDDEN,))
    if not tied:
        add("output.weight", (WORDS, HIDDEN), kind)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", (HIDDEN,))
        for part, shape in SHAPES.items():
            add(f"blk.{layer}.{part}.weight", shape, kind)
    for name in more:
        add(name, (HIDDEN,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> dict[str, Any] | None:
    reader = gguf.GGUFReader(str(path))
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    names = llama_names(reader)
    return None if names is None else dict(llama_weights(reader, names, config))


def read_by_transformers(path: Path) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    weights: dict[str, Any] = model.state_dict()
    return weights


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "tied"), [(KINDS.Q4_1, True), (KINDS.Q8_0, False), (KINDS.F16, True), (KINDS.F32, False)]
)
def test_they_are_those_that_transformers_reads(kind: Any, tied: bool, tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", kind, tied=tied, more=("rope_freqs.weight",))
    ours, theirs = read(tmp_path / "tiny.gguf"), read_by_transformers(tmp_path / "tiny.gguf")
    assert ours is not None
    if tied:  # it is the embedding once more
        del theirs["lm_head.weight"]
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert torch.equal(ours[name], values), name


@pytest.mark.parametrize(
    "more", ["blk.0.attn_q.bias", "blk.1.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight", "unknown.weight"]
)
def test_what_is_no_plain_llama_is_left_to_transformers(more: str, tmp_path: Path) -> None:
    write(tmp_path / "other.gguf", KINDS.F16, tied=True, more=(more,))
    assert read(tmp_path / "other.gguf") is None
