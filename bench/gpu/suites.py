"""Steps that run tests of the repository, and the speed of the quantizing kernels."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.gpu.floors import hbm_rate
from bench.gpu.steps import MIB, StepReport, StepSetting, in_turns

_ROOT = Path(__file__).parents[2]
_KEPT = 1500
# A bare machine lacks plugins whose options stand in pyproject.toml.
_OPTIONS = ("-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning")
_LEAST_OF_HBM = 0.8
_SHAPE = "bfloat16 {heads}(t16 c128|t16 c128)"  # K and V of blocks of 16 tokens, 128 channels a head


def conformance(setting: StepSetting, report: StepReport) -> None:
    """The contracts of copies and transports, with regions of the device."""
    if setting.fake:
        chosen = ["tests/conformance/test_copies.py", "-k", "fake"]
    else:
        setting.copies()
        chosen = [
            "tests/gpu/test_copies.py",
            "tests/gpu/test_transport.py",
            "tests/gpu/test_transport_ends.py",
        ]
    _pytest(chosen, {}, report)


def formats(setting: StepSetting, report: StepReport) -> None:
    """The quantizing kernels beside numpy, and their speed beside a copy within the device."""
    if setting.fake:
        _pytest(["tests/gpu/test_formats.py", "-k", "opaque"], {"TRITON_INTERPRET": "1"}, report)
        report.figure("speed", "skipped: it needs CUDA")
        return
    setting.copies()
    _pytest(["tests/gpu/test_formats.py", "tests/gpu/test_coder.py"], {}, report)
    _speed(setting, report)


def _pytest(chosen: list[str], environment: dict[str, str], report: StepReport) -> None:
    """A test that fails fails the step."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *_OPTIONS],
        cwd=_ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    report.figure("tests", lines[-1] if lines else "pytest printed nothing")
    report.expect("the tests pass", done.returncode == 0)
    if done.returncode:
        report.figure("output", (done.stdout + done.stderr)[-_KEPT:])


def _speed(setting: StepSetting, report: StepReport) -> None:
    """One block so large that launching costs nothing. A copy counts bytes read and written, and so do the
    kernels."""
    import torch

    from llmserve.kvstore.formats import BlockShape, Quantize
    from llmserve.kvstore.formats.gpu import GpuQuantizer

    shape = BlockShape.parse(_SHAPE.format(heads=32_768))
    device = torch.device("cuda", 0)
    block = torch.randn(shape.elements, device=device).to(torch.bfloat16).view(torch.uint8)
    copies = setting.copies()
    report.figure("device to device GB/s, read and written", hbm_rate(copies, 512 * MIB))
    other = torch.empty_like(block)
    for grid in (Quantize.INT8, Quantize.FP8):
        quantizer = GpuQuantizer(shape, grid, device)
        codes = torch.empty(quantizer.quantized_bytes, dtype=torch.uint8, device=device)
        moved = block.nbytes + codes.nbytes
        for name, kernel in (
            ("quantize", partial(quantizer.quantize, block, codes)),
            ("dequantize", partial(quantizer.dequantize, codes, other)),
        ):
            _compare(f"{name} {grid}", kernel, block, other, moved, report)


def _compare(name: str, kernel, block, other, moved: int, report: StepReport) -> None:  # type: ignore[no-untyped-def]
    import torch

    def ours() -> None:
        kernel()
        torch.cuda.synchronize()

    def floor() -> None:
        other.copy_(block)
        torch.cuda.synchronize()

    kernel_rate, copy_rate = in_turns(ours, floor, 1, 5)  # calls, in billions a second
    report.goal(name, kernel_rate * moved, copy_rate * 2 * block.nbytes, least=_LEAST_OF_HBM)
