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

# What transformers finds when it looks through its models is what was there without looking again.
_EXPORTS = """
from llmserve.engines.vllm.transformers_import import import_transformers
import_transformers()
import transformers.models as models
from transformers.utils.import_utils import define_import_structure as look
looked = look.cache_info().misses
found = look(models.__spec__.origin)
told = {name: needed for needed, names in found.items() for made in names.values() for name in made}
print(looked, look.cache_info().misses, models.LlamaConfig.model_type)
print(len(told) > 1000 and told.keys() <= set(dir(models)))
"""


def test_it_has_no_compiler_but_may_import_one() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "True", "torch._inductor.lowering"], done.stderr


def test_transformers_looks_through_its_models_once() -> None:
    done = subprocess.run([sys.executable, "-c", _EXPORTS], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["1 2 llama", "True"], done.stderr
