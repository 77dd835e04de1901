"""AsyncLLM alone, on the engine settings of the cluster: the truth that parity is measured against.

Run as a process of its own (vLLM spawns): reads {"model", "max_model_len", "cases"} from the file
named first, writes the token ids of each case to the file named second.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any


async def _run(job: dict[str, Any]) -> list[list[int]]:
    from vllm import SamplingParams, TokensPrompt
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    args = AsyncEngineArgs(
        model=job["model"], max_model_len=job["max_model_len"], enforce_eager=True, enable_prefix_caching=True
    )
    llm = AsyncLLM.from_engine_args(args)
    answers = []
    for number, case in enumerate(job["cases"]):
        params = SamplingParams(temperature=0, max_tokens=case["max_tokens"], ignore_eos=True)
        prompt = TokensPrompt(prompt_token_ids=case["prompt"])
        async for output in llm.generate(prompt, params, str(number)):
            tokens = list(output.outputs[0].token_ids)
        answers.append(tokens)
    llm.shutdown()
    return answers


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(asyncio.run(_run(json.loads(source.read_text())))))


if __name__ == "__main__":
    main()
