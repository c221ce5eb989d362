"""Floating-point operations of a step of any architecture, counted by PyTorch: python -m benchmarks.flops [key=value]

    python -m benchmarks.flops                        the published sizes, as this code and as the original compute them
    python -m benchmarks.flops arch.hidden_size=256   the same with other settings of pretrain.py, `arch=…` included

The step runs on the meta device, which computes only shapes: counting takes a moment and no memory. It counts matrix
products, convolutions and attention, forward and backward, with 2 m n k for a product; attention is one fused kernel,
whose backward pass computes the scores again (as FlashAttention does and PyTorch's counter assumes). Left out, together
less than 1 %: embeddings, norms, activations, the softmax of attention, the loss, the optimisers.

`roofline` is the least time that a device needs: each of these kernels takes at least operations / peak, and at least
the bytes of its operands and results / bandwidth; all else is fused into them; the optimiser moves its states once.
"""

import copy
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.report import in_turns
from errors import UserError, one_line_errors
from models.losses import ACTLossHead

META = torch.device("meta")


class Kernel(NamedTuple):
    flops: float
    bytes: float


class Device(NamedTuple):
    """What a device can do at most."""

    flops: float  # operations per second, in matrix products in the forward dtype
    bandwidth: float  # bytes per second
    source: str


# Measured with large matrix products and copies, not taken from the data sheet.
H100 = Device(790e12, 3.0e12, "H100, measured: 790 TFLOP/s in bfloat16, 3.0 TB/s")


def flops_per_step(head: ACTLossHead, batch: int, training: bool = True) -> float:
    """Operations of one training step, or one reasoning step of evaluation, on `batch` sequences.

    They are exactly linear in the batch. The head may be on any device, and compiled; it is not changed.
    """
    return sum(kernel.flops for kernel in step_kernels(head, batch, training))


def step_kernels(head: ACTLossHead, batch: int, training: bool = True) -> list[Kernel]:
    """The kernels that are counted, in the order in which they run; see `flops_per_step`."""
    head = on_meta(head).train(training)
    data = head.model.data
    rows = data.batch_size  # of the training batches that the model was built for: some buffers have this size
    tokens = torch.zeros(rows, data.seq_len, dtype=torch.int32, device=META)
    fields = {"inputs": tokens, "labels": tokens, "puzzle_identifiers": tokens[:, 0]}
    with FusedAttention(), KernelCounter() as counter:
        out = head(carry=head.initial_carry(fields), batch=fields)
        if training:
            out.loss.backward()
    return [Kernel(kernel.flops * batch / rows, kernel.bytes * batch / rows) for kernel in counter.kernels]


def on_meta(head: nn.Module) -> nn.Module:
    """A copy without values, and without compiled code."""
    known = {}
    for tensor in (*head.parameters(), *head.buffers()):
        shape = torch.empty_like(tensor, device=META)
        is_parameter = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if is_parameter else shape
        known[id(tensor)].requires_grad_(tensor.requires_grad)
    return copy.deepcopy(head, known)


class KernelCounter(FlopCounterMode):
    """PyTorch's counter, which also keeps every kernel with its bytes."""

    def __init__(self):
        self.kernels: list[Kernel] = []
        formulas = flop_registry | {torch.ops.aten.convolution_backward: convolution_backward_flops}
        super().__init__(display=False, custom_mapping={op: self._noting(flops) for op, flops in formulas.items()})

    def _noting(self, formula: Callable) -> Callable:
        def flops(*args, out_val=None, **kwargs) -> int:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out_val)) if isinstance(leaf, Tensor)]
            count = formula(*args, out_val=out_val, **kwargs)
            self.kernels.append(Kernel(count, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
            return count

        flops._get_raw = True  # the counter hands over tensors, not their shapes
        return flops


def convolution_backward_flops(grad: Tensor, x: Tensor, weight: Tensor, *options, out_val=None) -> int:
    """As many as forward for each gradient that is asked for; PyTorch's formula does not know of groups."""
    *_, (of_x, of_weight, _) = options
    return 2 * grad.numel() * weight[0].numel() * (of_x + of_weight)


class FusedAttention(TorchFunctionMode):
    """Turns PyTorch's attention into one kernel that the counter knows; a CPU's kernels it does not count."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor, *_, **__) -> Tensor:
        try:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        except NotImplementedError:  # before PyTorch 2.5 there are no shapes without values for this kernel
            raise UserError(f"counting operations needs PyTorch 2.5 or later, this is {torch.__version__}") from None


def roofline(kernels: list[Kernel], head: nn.Module, device: Device) -> float:
    """Seconds of a training step: no kernel is faster than its operations or its bytes allow."""
    optimizer = 7 * 4 * count_parameters(head)  # float32: reads gradient, weight and two moments, writes three of them
    return sum(max(k.flops / device.flops, k.bytes / device.bandwidth) for k in [*kernels, Kernel(0, optimizer)])


def count_parameters(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


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
    from benchmarks.sizes import SIZES, build_head

    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    print(f"One step of `batch` sequences; the roofline of training is that of an {H100.source}\n")
    print("| size | batch | parameters | TFLOP of training | as the original | roofline, ms | TFLOP of evaluation |")
    print("| --- " * 7 + "|")
    with one_line_errors():
        for name in ("sudoku", "maze", "arc"):
            for batch in SIZES[name].batches:
                head = build_head(SIZES[name], batch, META, "arch.forward_dtype=bfloat16", *sys.argv[1:])
                kernels = step_kernels(head, batch)
                training, evaluation = sum(k.flops for k in kernels), flops_per_step(head, batch, training=False)
                original = flops_per_step(as_the_original(head), batch)
                print(
                    f"| {name} | {batch} | {count_parameters(head) / 1e6:.1f} M | {training / 1e12:.3g} "
                    f"| {original / 1e12:.3g} | {1e3 * roofline(kernels, head, H100):.3g} | {evaluation / 1e12:.3g} |"
                )


if __name__ == "__main__":
    main()
