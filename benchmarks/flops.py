"""Floating-point operations and memory traffic of one training step, counted from the config; the roofline of both.

    python -m benchmarks.flops        for the sizes that are trained, as the original computes a step, on an H100

A step is a list of kernels, each with its operations and the bytes that it must move: inputs read once, outputs written
once. Its time is at least the larger of operations / peak and bytes / bandwidth, and the roofline is the sum of these.
`fused=True` lets every element-wise kernel disappear into the matrix product beside it; with False they stand alone,
one kernel for each of rotary positions, residual + norm and SwiGLU, as torch.compile makes them.

Operations: 2 m n k for a matrix product; the backward of attention computes the scores again, as FlashAttention and
PyTorch's counter have it. Left out, together less than 1 %: embeddings, the softmax of attention, the loss.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1Config, resolve_dtype
from models.layers import SwiGLU


class Kernel(NamedTuple):
    flops: float
    bytes: float


class Device(NamedTuple):
    """What a device can do at most."""

    flops: float  # operations a second, of matrix products in the forward dtype
    bandwidth: float  # bytes a second
    source: str


# Measured with large matrix products and copies, not taken from the data sheet.
KNOWN_DEVICES = {"H100": Device(790e12, 3.0e12, "H100, measured: 790 TFLOP/s in bfloat16, 3.0 TB/s")}


def kernel(flops: float, values: float, size: int) -> Kernel:
    return Kernel(flops, values * size)


def layer_kernels(
    config: HierarchicalReasoningModel_ACTV1Config, rows: int, *, backward: bool, fused: bool, size: int
) -> Iterator[Kernel]:
    """The kernels of one block, forward or backward, on `rows` sequences; `size` bytes an activation."""
    hidden, length = config.hidden_size, sequence_length(config)
    tokens = rows * length
    width = swiglu_width(config)
    a, w = tokens * hidden, tokens * width  # values in the residual stream, and in the gated unit
    qkv, out, gate_up, down = (2 * tokens * hidden * n for n in (3 * hidden, hidden, 2 * width, width))
    scores = 2 * rows * length * length * hidden  # one product over all heads: q k^T, or the weights times v
    if not backward:
        yield kernel(qkv, 4 * a, size)
        yield kernel(2 * scores, 4 * a, size)
        yield kernel(out, (3 if fused else 2) * a, size)  # fused: the residual is read here
        yield kernel(gate_up, a + (1 if fused else 2) * w, size)
        yield kernel(down, w + (2 if fused else 1) * a, size)
        elementwise = [4 * a, 3 * a, 3 * w, 3 * a]  # rotary on q and k, residual + norm, SwiGLU, residual + norm
    else:
        yield kernel(down, a + (4 if fused else 1) * w, size)  # of the input; fused: SwiGLU's own backward
        yield kernel(down, a + w, size)  # of the weight
        yield kernel(gate_up, 2 * w + a, size)
        yield kernel(gate_up, 2 * w + a, size)
        yield kernel(out, 2 * a, size)
        yield kernel(out, 2 * a, size)
        yield kernel(5 * scores, 8 * a, size)
        yield kernel(qkv, 4 * a, size)
        yield kernel(qkv, 4 * a, size)
        elementwise = [4 * a, 4 * a, 5 * w, 4 * a]  # rotary; norm with both gradients and its input; SwiGLU; norm
    if not fused:
        for values in elementwise:
            yield kernel(0, values, size)


def first_position_kernels(config: HierarchicalReasoningModel_ACTV1Config, rows: int, *, size: int) -> Iterator[Kernel]:
    """The last layer of the Q target: keys and values of all tokens, everything else of position 0 only."""
    hidden, tokens = config.hidden_size, rows * sequence_length(config)
    yield kernel(2 * tokens * hidden * 2 * hidden, 3 * tokens * hidden, size)
    yield kernel(4 * tokens * hidden, 2 * tokens * hidden, size)  # attention of one query
    per_row = 2 * hidden * (2 * hidden + 3 * swiglu_width(config))  # q, o, gate and up, down
    yield kernel(rows * per_row, 4 * rows * hidden, size)


def step_kernels(
    config: HierarchicalReasoningModel_ACTV1Config,
    rows: int,
    parameters: int,
    *,
    fused: bool,
    size: int = 2,
    plain: bool = False,
) -> Iterator[Kernel]:
    """All kernels of one training step of `rows` sequences: forward, backward, the Q target, the optimiser.

    `plain` runs the last layer of the Q target on all positions, as the original does.
    """
    forward, backward = layer_passes(config)
    if not plain and config.halt_max_steps > 1:
        forward -= 1
        yield from first_position_kernels(config, rows, size=size)
    for passes, is_backward in ((forward, False), (backward, True)):
        kernels = list(layer_kernels(config, rows, backward=is_backward, fused=fused, size=size))
        for _ in range(passes):
            yield from kernels
    tokens = rows * sequence_length(config)
    for _ in range(3):  # lm_head: forward, and the gradients of its input and weight
        yield Kernel(2 * tokens * config.hidden_size * config.vocab_size, tokens * config.hidden_size * size)
    yield Kernel(0, 7 * 4 * parameters)  # AdamATan2 in float32: reads gradient, weight, m and v, writes three of them


def layer_passes(config: HierarchicalReasoningModel_ACTV1Config) -> tuple[int, int]:
    """-> (forward passes of a layer, those for the Q target included; backward passes) of one training step."""
    cycles = config.H_cycles * (config.L_cycles * config.L_layers + config.H_layers)
    targets = 1 if config.halt_max_steps > 1 else 0
    return (1 + targets) * cycles, config.L_layers + config.H_layers


def evaluation_flops(config: HierarchicalReasoningModel_ACTV1Config, rows: int) -> float:
    """Of one reasoning step of `rows` sequences without training."""
    cycles = config.H_cycles * (config.L_cycles * config.L_layers + config.H_layers)
    layer = total(layer_kernels(config, rows, backward=False, fused=True, size=2)).flops
    return cycles * layer + 2 * rows * sequence_length(config) * config.hidden_size * config.vocab_size


def sequence_length(config: HierarchicalReasoningModel_ACTV1Config) -> int:
    """Tokens and the puzzle-embedding positions before them."""
    return config.seq_len + -(-config.puzzle_emb_ndim // config.hidden_size)


def swiglu_width(config: HierarchicalReasoningModel_ACTV1Config) -> int:
    with torch.device("meta"):
        return SwiGLU(config.hidden_size, config.expansion).down_proj.weight.shape[1]


def total(kernels: Iterator[Kernel]) -> Kernel:
    kernels = list(kernels)
    return Kernel(sum(k.flops for k in kernels), sum(k.bytes for k in kernels))


def roofline(kernels: Iterator[Kernel], device: Device) -> float:
    """Seconds: no kernel is faster than its operations or its bytes allow."""
    return sum(max(k.flops / device.flops, k.bytes / device.bandwidth) for k in kernels)


def count_parameters(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


def describe_device(device: torch.device, forward_dtype: str = "auto") -> Device:
    """A device whose figures are known, or figures measured now: the fastest of several products and copies."""
    dtype = resolve_dtype(forward_dtype, device.type)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((figures for key, figures in KNOWN_DEVICES.items() if key in name), None)
    if known is not None and dtype == torch.bfloat16:
        return known
    n, megabytes = (8192, 1024) if device.type == "cuda" else (1536, 128)
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    zeros = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(zeros)
    flops = 2 * n**3 / fastest(lambda: torch.mm(left, right), device)
    bandwidth = 2 * zeros.numel() / fastest(lambda: target.copy_(zeros), device)
    kind = str(dtype).removeprefix("torch.")
    return Device(
        flops, bandwidth, f"measured in this run: {flops / 1e12:.3g} TFLOP/s {kind}, {bandwidth / 1e9:.3g} GB/s"
    )


def fastest(call, device: torch.device, repeats: int = 12) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    from benchmarks.sizes import SIZES, build_head

    device = KNOWN_DEVICES["H100"]
    print(f"Roofline of one training step on an {device.source}\n")
    print("| size | batch | tokens | TFLOP | GB separate | ms separate | GB fused | ms fused |\n" + "| --- " * 8 + "|")
    for name in ("sudoku", "arc", "maze"):
        for batch in SIZES[name].batches:
            with torch.device("meta"):
                head = build_head(SIZES[name], batch)
            cells = [name, batch, sequence_length(head.model.config)]
            for fused in (False, True):
                kernels = list(step_kernels(head.model.config, batch, count_parameters(head), fused=fused, plain=True))
                cells += [] if fused else [f"{total(kernels).flops / 1e12:.1f}"]
                cells += [f"{total(kernels).bytes / 1e9:.0f}", f"{1e3 * roofline(kernels, device):.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
