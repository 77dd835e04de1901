"""python -m llmserve.apiserver.grammars CPU_SECONDS: the process that compiles grammars (GrammarProcess).

Its input are lines of JSON: tasks, and models `{"model": 1, "config": "…"}` (vLLM's configuration, as base64
of a pickle), which have to come before their tasks; without a configuration, the model is forgotten. It ends
with its input.
"""

import base64
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from typing import Any

from llmserve.apiserver.grammars.forks import ForkLimits, ForkServer, Task
from llmserve.core.process import importing
from llmserve.engines.vllm.environment import set_apiserver_environment


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the apiserver decides when this ends
    # Only answers go to stdout: what libraries print there goes to the log.
    answers = os.dup(1)
    os.dup2(2, 1)
    set_apiserver_environment()
    # After the environment, which vLLM reads when it is imported.
    with importing():
        from llmserve.apiserver.grammars.compiler import GrammarCompiler

    compilers: dict[int, GrammarCompiler] = {}  # by model

    def prepare(line: Mapping[str, Any]) -> None:
        compilers.pop(line["model"], None)
        if line["config"]:
            config = pickle.loads(base64.b64decode(line["config"]))
            compilers[line["model"]] = GrammarCompiler(config)

    def problem_of(task: Task) -> str:
        return compilers[task["model"]].problem_of(task)

    os.write(answers, b"{}\n")
    limits = ForkLimits.of(int(sys.argv[1]))
    ForkServer(problem_of, limits, tasks=0, answers=answers, prepare=prepare).serve()
    os._exit(0)  # nothing is left to be tidied up, and vLLM's modules take seconds for it


if __name__ == "__main__":
    main()
