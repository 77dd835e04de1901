"""A real model's KV and answers: `transformers` on the CPU, with the model of llmserve.yaml.

Of each prompt, the full blocks of KV go through a codec, as the KV store would keep them, and the answer is
computed again on what comes back: the tokens of the undisturbed answer are fed in, and at each of them the
model's logits are compared. Up to the first place where the most likely token differs, that is what the
user would have got.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from llmserve.config.load import load_manifest
from llmserve.kvstore.formats import BlockCodec, BlockShape, Element, shape_of
from llmserve.models.resolve import resolve

_BLOCK_TOKENS = 128
_PROMPT_TOKENS = 900
_PROMPTS = 6
_SOURCES = ("README.md", "docs/*.md", "src/llmserve/core/*.py")

Block = npt.NDArray[np.uint8]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer: keys, values, [1, heads, tokens, head size]


@dataclass(frozen=True, slots=True)
class Drift:
    """Against the same model on its own KV. agreement: the share of places with the same likeliest token."""

    kv_error: float
    logit_mean: float
    logit_max: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Run:
    """logits: [answer tokens, vocabulary], of the answer computed at once; stepwise: token by token."""

    prompt_tokens: int
    pairs: Pairs
    blocks: list[Block]
    answer: torch.Tensor
    logits: torch.Tensor
    stepwise: torch.Tensor

    def noise(self) -> Drift:
        """What bfloat16 arithmetic in another order does by itself."""
        return _drift(self.logits, self.stepwise, 0.0)


class Model:
    answer_tokens = 64

    def __init__(self, path: Path) -> None:
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)  # two that wait for each other crawl where others work too
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        config = self._model.config
        self._heads: int = config.num_key_value_heads
        self._head_size: int = config.head_dim
        self.shape: BlockShape = shape_of(
            "LBHNC/vec",
            Element.BFLOAT16,
            layers=config.num_hidden_layers,
            heads=self._heads,
            tokens=_BLOCK_TOKENS,
            head_size=self._head_size,
        )

    @classmethod
    def of_manifest(cls) -> "Model":
        return cls(resolve(load_manifest("llmserve.yaml").model).path)

    def prompts(self) -> Iterator[torch.Tensor]:
        """Token ids [1, tokens] of questions about texts of this repository."""
        texts = [path.read_text() for pattern in _SOURCES for path in sorted(Path().glob(pattern))]
        for text in [text for text in texts if len(text) > 5 * _PROMPT_TOKENS][:_PROMPTS]:
            question = f"What is this text about?\n\n{text[: 3 * _PROMPT_TOKENS]}"
            chat = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            yield self._tokenizer(chat, return_tensors="pt").input_ids

    def run(self, prompt: torch.Tensor) -> Run:
        cache = transformers.DynamicCache()
        last = self._logits(prompt, cache)[-1]
        pairs = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        tokens, steps = [int(last.argmax())], []
        for _ in range(self.answer_tokens):
            steps.append(self._logits(torch.tensor([tokens[-1:]]), cache)[-1])
            tokens.append(int(steps[-1].argmax()))
        answer = torch.tensor([tokens[:-1]])
        logits = self._logits(answer, _cache(pairs))
        return Run(prompt.shape[1], pairs, self._blocks(pairs), answer, logits, torch.stack(steps))

    def drift(self, run: Run, codec: BlockCodec) -> Drift:
        """Of the answer on KV that went through the codec."""
        blocks = [_through(codec, block) for block in run.blocks]
        logits = self._logits(run.answer, _cache(self._with_blocks(run.pairs, blocks)))
        return _drift(run.logits, logits, _relative_error(run.blocks, blocks))

    def _logits(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """[tokens, vocabulary]; the cache grows."""
        with torch.inference_mode():
            found: torch.Tensor = self._model(ids, past_key_values=cache, use_cache=True).logits[0].float()
        return found

    def _blocks(self, pairs: Pairs) -> list[Block]:
        """The full ones, packed as vLLM's CPU kernels do: keys transposed."""
        count = pairs[0][0].shape[2] // _BLOCK_TOKENS
        return [self._pack(pairs, slice(n * _BLOCK_TOKENS, (n + 1) * _BLOCK_TOKENS)) for n in range(count)]

    def _pack(self, pairs: Pairs, tokens: slice) -> Block:
        parts = [
            part.reshape(self._heads, -1)
            for keys, values in pairs
            for part in (keys[0, :, tokens].transpose(1, 2), values[0, :, tokens])
        ]
        heads = torch.stack(parts).unflatten(0, (-1, 2)).transpose(1, 2)  # layers, heads, K and V
        packed: Block = heads.contiguous().view(torch.uint8).numpy().ravel()
        return packed

    def _with_blocks(self, pairs: Pairs, blocks: list[Block]) -> Pairs:
        copies = [(keys.clone(), values.clone()) for keys, values in pairs]
        size = (len(pairs), self._heads, 2, -1)
        for number, block in enumerate(blocks):
            tokens = slice(number * _BLOCK_TOKENS, (number + 1) * _BLOCK_TOKENS)
            layers = torch.from_numpy(block).view(torch.bfloat16).reshape(size)
            for (keys, values), layer in zip(copies, layers, strict=True):
                keys[0, :, tokens] = layer[:, 0].unflatten(1, (self._head_size, -1)).transpose(1, 2)
                values[0, :, tokens] = layer[:, 1].unflatten(1, (-1, self._head_size))
        return copies


def _cache(pairs: Pairs) -> Any:
    cache = transformers.DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys.clone(), values.clone(), layer)
    return cache


def _through(codec: BlockCodec, block: Block) -> Block:
    stored = codec.encode(b"", block.data, memoryview(bytearray(codec.bound_bytes)))
    back = np.empty_like(block)
    codec.decode(b"", stored.header, stored.payload, back.data)
    return back


def _relative_error(before: list[Block], after: list[Block]) -> float:
    kept, found = (
        torch.from_numpy(np.stack(blocks)).view(torch.bfloat16).float() for blocks in (before, after)
    )
    return float((found - kept).pow(2).mean().sqrt() / kept.pow(2).mean().sqrt())


def _drift(expected: torch.Tensor, found: torch.Tensor, kv_error: float) -> Drift:
    apart = (found - expected).abs()
    same = (found.argmax(1) == expected.argmax(1)).float().mean()
    return Drift(kv_error, float(apart.mean()), float(apart.max()), float(same))
