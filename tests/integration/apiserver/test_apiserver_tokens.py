"""The renderer of the apiserver, which cuts chats at special tokens, gives the tokens that vLLM's gives."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

TEXTS = ("", "hello", "<s>hello</s>", "a</s></s> b<s>\n</s>", "é€𝄞</s>日本", "x" * 80 + "</s>" + "y" * 80)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_special_tokens": True},
    {"return_token_offsets": True},
    {"truncate_prompt_tokens": 4},
    {"truncate_prompt_tokens": 4, "truncation_side": "left"},
    {"truncate_prompt_tokens": -1},
    {"max_total_tokens": 20},
]


async def test_chats_have_vllm_s_tokens(cluster: Any, subtests: pytest.Subtests) -> None:
    for options in OPTIONS:
        with subtests.test(options=options):
            renderer = cluster.apiserver.models.first.client.renderer
            params = replace(renderer.default_chat_tok_params, **options)
            for text in TEXTS * 2:  # not known, and known
                prompt = {"prompt": text}
                expected = await outcome(asyncio.to_thread(renderer.tokenize_prompt, dict(prompt), params))
                assert await outcome(renderer.tokenize_prompt_async(dict(prompt), params)) == expected


async def outcome(tokenizing: Awaitable[Any]) -> Any:
    """Returns the tokens, or why there are none."""
    try:
        return await tokenizing
    except VLLMValidationError as error:
        return str(error)
