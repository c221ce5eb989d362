"""Floating-point operations of a step of any architecture (training/flops.py): python -m benchmarks.flops [key=value]

    python -m benchmarks.flops                        the published sizes, as this code and as the original compute them
    python -m benchmarks.flops arch.hidden_size=256   the same with other settings of pretrain.py, `arch=…` included

`roofline` is the least time that a device needs: each of these kernels takes at least operations / peak, and at least
the bytes of its operands and results / bandwidth; all else is fused into them; the optimiser moves its states once.
"""

import sys
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.report import in_turns
from errors import one_line_errors
from training.flops import META, Kernel, count_parameters, flops_per_step, step_kernels


class Device(NamedTuple):
    """What a device can do at most."""

    flops: float  # operations per second, in matrix products in the forward dtype
    bandwidth: float  # bytes per second
    source: str


# Measured with large matrix products and copies, not taken from the data sheet.
H100 = Device(790e12, 3.0e12, "H100, measured: 790 TFLOP/s in bfloat16, 3.0 TB/s")


def roofline(kernels: list[Kernel], head: nn.Module, device: Device) -> float:
    """Seconds of a training step: no kernel is faster than its operations or its bytes allow."""
    optimizer = 7 * 4 * count_parameters(head)  # float32: reads gradient, weight and two moments, writes three of them
    return sum(max(k.flops / device.flops, k.bytes / device.bandwidth) for k in [*kernels, Kernel(0, optimizer)])


def measure_device(device: torch.device, dtype: torch.dtype) -> Device:
    """The fastest of several large products and copies."""
    n, megabytes = (8192, 1024) if device.type == "cuda" else (1536, 128)
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    zeros = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(zeros)
    times = in_turns({"mm": lambda: torch.mm(left, right), "copy": lambda: target.copy_(zeros)}, 12, device)
    flops, bandwidth = 2 * n**3 / min(times["mm"]), 2 * zeros.numel() / min(times["copy"])
    kind = str(dtype).removeprefix("torch.")
    source = f"measured in this run: {flops / 1e12:.3g} TFLOP/s {kind}, {bandwidth / 1e9:.3g} GB/s"
    return Device(flops, bandwidth, source)


def main() -> None:
    from benchmarks.baseline import as_the_original
    from benchmarks.sizes import SIZES, build_head, config_of

    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    with one_line_errors():
        arch = config_of(SIZES["sudoku"], 1, *sys.argv[1:]).arch
        dtype = ["arch.forward_dtype=bfloat16"] if hasattr(arch, "forward_dtype") else []
        print(f"One step of `batch` sequences; the roofline of training is that of an {H100.source}\n")
        print(
            "| size | batch | parameters | TFLOP of training | as the original | roofline, ms | TFLOP of evaluation |"
        )
        print("| --- " * 7 + "|")
        for name in ("sudoku", "maze", "arc"):
            for batch in SIZES[name].batches:
                head = build_head(SIZES[name], batch, META, *dtype, *sys.argv[1:])
                kernels = step_kernels(head, batch)
                training, evaluation = sum(k.flops for k in kernels), flops_per_step(head, batch, training=False)
                original = flops_per_step(as_the_original(head), batch)
                print(
                    f"| {name} | {batch} | {count_parameters(head) / 1e6:.1f} M | {training / 1e12:.3g} "
                    f"| {original / 1e12:.3g} | {1e3 * roofline(kernels, head, H100):.3g} | {evaluation / 1e12:.3g} |"
                )


if __name__ == "__main__":
    main()
