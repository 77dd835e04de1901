"""Small models of one kind of attention, made for a test: Llamas of random weights, by default over a
vocabulary of 64 tokens, so that what they draw can be counted."""

from collections.abc import Sequence
from pathlib import Path

VOCAB = 64
MAX_MODEL_LEN = 512


def make_tiny_llama(
    directory: Path,
    *,
    seed: int,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = VOCAB,
    max_model_len: int = MAX_MODEL_LEN,
) -> Path:
    """Writes the model in float32; takes a second. Its weights are large enough for its choices to be clear,
    and small enough for every token to have a chance."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=32,
        initializer_range=0.15,
        max_position_embeddings=max_model_len,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    write_tokenizer(directory, vocab)
    return directory


def write_tokenizer(directory: Path, vocab: int) -> None:
    """vLLM wants one. Token 7 is the letter that is the seventh after the first printable one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(ord("!") + number): number for number in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def token_chances(
    model_dir: Path, prompt: Sequence[int], count: int, *, temperature: float, top_k: int
) -> list[list[float]]:
    """Returns the probability of each token at the first `count` (at most 3) places of an answer, whatever
    comes before it there: [count][VOCAB]. By transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # so small a model is slower with more
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    begun, chances, found = torch.tensor([prompt]), torch.ones(1), []
    for _ in range(count):
        with torch.no_grad():
            logits = model(begun).logits[:, -1] / temperature
        least = logits.topk(top_k).values[:, -1:]
        following = logits.masked_fill(logits < least, float("-inf")).softmax(-1) * chances[:, None]
        found.append(following.sum(0).tolist())
        # Every way to go on is followed, with its probability.
        begun = torch.cat(
            [begun.repeat_interleave(VOCAB, 0), torch.arange(VOCAB).repeat(len(begun))[:, None]], 1
        )
        chances = following.flatten()
    return found
