"""What the process of an apiserver imports."""

import subprocess
import sys

# The process says what is there after the import, and that the compiler can be imported then.
_PROGRAM = """
import sys, torch
from llmserve.apiserver.build import without_compiler
stock = torch.compile
with without_compiler():
    import llmserve.apiserver.role
print([name for name in ("torch._inductor.graph", "torch._inductor.scheduler") if name in sys.modules])
print(torch.compile is stock)
import torch._inductor.lowering
print(torch._inductor.lowering.__name__)
"""


def test_it_has_no_compiler_but_may_import_one() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "True", "torch._inductor.lowering"], done.stderr
