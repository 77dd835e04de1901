"""The baseline: AsyncLLM alone on one core, driven over pipes so that it and a cluster can take turns.

`python -m bench.gateway.alone MODEL MAX_LEN DTYPE`: one JSON request a line in, {"ttft", "gaps", "tokens",
"computed", "waited"} a line out.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any, TextIO

from bench.gateway.computing import ComputingThread

_MARK = "BENCH "
# vLLM's worker process looks for its next step in a busy loop for a second after the last one.
_REST_SECONDS = 1.2


class Alone:
    """The parent's side. Its worker process is bound to `core`, as the cluster's engines are bound to theirs;
    its scheduler has a process of its own, on any core."""

    def __init__(self, model: str, max_model_len: int, core: int, dtype: str = "auto") -> None:
        environment = {
            **os.environ,
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        command = [sys.executable, "-m", "bench.gateway.alone", model, str(max_model_len), dtype]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()  # ready

    def measure(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps({"prompt": prompt, "max_tokens": max_tokens}), file=self._process.stdin, flush=True)
        return self._answer()

    def rest(self) -> None:
        """Returns when it takes nothing of its core any more."""
        time.sleep(_REST_SECONDS)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                return answer
        raise RuntimeError("the baseline engine ended")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


async def _serve(model: str, max_model_len: int, dtype: str, requests: TextIO) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=model, max_model_len=max_model_len, dtype=dtype, enforce_eager=True)
    )
    print(_MARK + "{}", flush=True)
    number = 0
    while line := await asyncio.to_thread(requests.readline):
        number += 1
        print(_MARK + json.dumps(await _one(llm, str(number), json.loads(line))), flush=True)
    llm.shutdown()


async def _one(llm: Any, request_id: str, job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0, max_tokens=job["max_tokens"], ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    computing, computed = ComputingThread(os.getpid()), None
    started = time.perf_counter()
    arrivals: list[float] = []
    tokens: list[int] = []
    async for output in llm.generate(TokensPrompt(prompt_token_ids=job["prompt"]), params, request_id):
        arrivals.append(time.perf_counter())
        computed = computed or computing.so_far()
        tokens += output.outputs[0].token_ids
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert computed is not None
    answer = {"ttft": arrivals[0] - started, "gaps": gaps, "tokens": tokens}
    return answer | {"computed": computed.cpu, "waited": computed.waited}


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.stdin))
