"""The GPU tests on CPU tensors by Triton's interpreter, in a process of its own: Triton decides at import."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="no Triton")

KERNEL_TESTS = [
    "tests/gpu/test_copies.py",
    "tests/gpu/test_formats.py",
    "tests/gpu/test_coder.py",
]  # the others need memory of a GPU


def test_the_kernels_do_on_the_cpu_what_they_should_on_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *KERNEL_TESTS, "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout
