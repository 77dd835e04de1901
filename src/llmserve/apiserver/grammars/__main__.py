"""python -m llmserve.apiserver.grammars: the process that compiles grammars (GrammarProcess).

Its first line of input is the configuration of vLLM (base64 of a pickle), the others are tasks. It ends with
its input.
"""

import base64
import os
import pickle
import signal

from llmserve.apiserver.grammars.forks import ForkLimits, ForkServer
from llmserve.engines.vllm.environment import set_apiserver_environment


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the apiserver decides when this ends
    # Only answers go to stdout: what libraries print there goes to the log.
    answers = os.dup(1)
    os.dup2(2, 1)
    set_apiserver_environment()
    config = pickle.loads(base64.b64decode(_first_line()))
    # After the environment, which vLLM reads when it is imported.
    from llmserve.apiserver.grammars.compiler import GrammarCompiler

    compiler = GrammarCompiler(config)
    os.write(answers, b"{}\n")
    ForkServer(compiler.problem_of, ForkLimits(), tasks=0, answers=answers).serve()
    os._exit(0)  # nothing is left to be tidied up, and vLLM's modules take seconds for it


def _first_line() -> bytes:
    """Reads no further: the tasks are read from the descriptor itself."""
    line = bytearray()
    while (read := os.read(0, 1)) not in (b"", b"\n"):
        line += read
    return bytes(line)


if __name__ == "__main__":
    main()
