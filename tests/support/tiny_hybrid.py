"""A small model with two kinds of attention, made for a test: a Gemma 3 of random weights.

What it says means nothing and depends on all that it has seen: random attention looks at every token alike.
An answer that is computed from one wrong block is nearly always another one (20 of 21 tried).
"""

from collections.abc import Sequence
from pathlib import Path

from tests.support.tiny_llama import write_tokenizer

WINDOW_TOKENS = 128
VOCAB = 2048
MAX_MODEL_LEN = 2048


def make_tiny_hybrid(directory: Path) -> Path:
    """Writes the model in float32; takes a second. vLLM puts its layers in three groups of two: twice those
    with the window, once those that see all. Its two KV heads can be on two ranks."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(3)
    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=MAX_MODEL_LEN,
        sliding_window=WINDOW_TOKENS,
        layer_types=[*["sliding_attention"] * 2, "full_attention"] * 2,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        dtype="float32",
    )
    Gemma3ForCausalLM(config).save_pretrained(directory)
    write_tokenizer(directory, VOCAB)  # without one it is refused
    return directory


def greedy_answers(model_dir: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Returns what the model says after each prompt, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # so small a model is slower with more
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False)
        answers.append(tokens[0, len(prompt) :].tolist())
    return answers
