"""Counts the floating-point operations of a step of any architecture, on shapes alone.

The step runs on the meta device: counting takes a moment and no memory. It counts matrix products, convolutions and
attention, forward and backward, with 2 m n k for a product; attention is one fused kernel, whose backward pass computes
the scores again (as FlashAttention does and PyTorch's counter assumes). Left out are embeddings, norms, activations,
the softmax of attention, the loss and the optimisers: together less than 1 % at the published sizes, 2 to 4 % at width
64.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from errors import UserError
from models.losses import ACTLossHead

META = torch.device("meta")


class Kernel(NamedTuple):
    flops: float
    bytes: float


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


class NoModules:
    """In place of PyTorch's tracker of modules, which asserts on a view that was made without gradients."""

    parents = frozenset({"Global"})

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *_) -> None:
        pass


class KernelCounter(FlopCounterMode):
    """PyTorch's counter, which also keeps every kernel with its bytes."""

    def __init__(self):
        self.kernels: list[Kernel] = []
        formulas = flop_registry | {torch.ops.aten.convolution_backward: convolution_backward_flops}
        super().__init__(display=False, custom_mapping={op: self._noting(flops) for op, flops in formulas.items()})
        self.mod_tracker = NoModules()

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


def count_parameters(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())
