"""Gradients summed over the ranks while the backward pass still computes (Li et al. 2020, "PyTorch Distributed", 3.2).

They travel in buckets: flat buffers of one dtype, filled in the order in which the first backward pass brought the
gradients. A bucket is sent as soon as its last gradient is there and the buckets before it are sent, so that the order
is the same on all ranks.

Puzzle embeddings are not parameters: `SparseSignSGD` gathers their gradients itself.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from training.distributed import Ranks

BUCKET_BYTES = 25 * 2**20  # as PyTorch's DistributedDataParallel


class GradientBuckets:
    """For the whole run: the buffers, as large as the gradients together, are kept between steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks, bucket_bytes: int = BUCKET_BYTES):
        """Of the parameters that have `requires_grad` now. A parameter larger than a bucket gets one of its own."""
        self._ranks, self._bucket_bytes = ranks, bucket_bytes
        self._parameters = [p for p in parameters if p.requires_grad] if ranks.world_size > 1 else []
        self._buckets: list[Bucket] = []  # after the first backward pass
        self._bucket_of: dict[nn.Parameter, Bucket] = {}
        self._arrived: dict[nn.Parameter, None] = {}  # in this backward pass, in this order
        self._sent = 0  # buckets
        self._summing = False
        arrive = WeakMethod(self._arrive)  # a parameter's hooks are invisible to the garbage collector

        def hook(parameter: nn.Parameter) -> None:
            if (call := arrive()) is not None:
                call(parameter)

        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(hook)

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Around one `backward()`: the gradients that it brings are sums over the ranks after it.

        `.grad` must be None or zero before. A parameter that gets no gradient keeps its `.grad`; which ones do must
        be the same on all ranks. Backward passes outside of this block are left alone.
        """
        if not self._parameters:
            yield
            return
        self._arrived, self._sent, self._summing = {}, 0, True
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        try:
            yield
        finally:
            self._summing = False
        if not self._buckets:
            self._fill()
        while self._sent < len(self._buckets):
            self._send_next()
        for bucket in self._buckets:
            bucket.receive()

    def _arrive(self, parameter: nn.Parameter) -> None:
        if not self._summing:
            return
        assert parameter not in self._arrived, "a second backward pass: what the first brought may have been sent"
        self._arrived[parameter] = None
        if not self._buckets:
            return
        self._bucket_of[parameter].missing -= 1
        while self._sent < len(self._buckets) and self._buckets[self._sent].missing == 0:
            self._send_next()

    def _send_next(self) -> None:
        self._buckets[self._sent].send(self._arrived, self._ranks)
        self._sent += 1

    def _fill(self) -> None:
        """In rank 0's order of arrival; then those without a gradient, the last registered first."""
        index = {parameter: i for i, parameter in enumerate(self._parameters)}
        order = [index[p] for p in self._arrived] + [index[p] for p in reversed(index) if p not in self._arrived]
        groups: list[list[nn.Parameter]] = []
        held = 0
        for parameter in (self._parameters[i] for i in self._ranks.broadcast_object(order)):
            size = parameter.numel() * parameter.element_size()
            if not groups or groups[-1][0].dtype != parameter.dtype or held + size > self._bucket_bytes:
                groups.append([])
                held = 0
            groups[-1].append(parameter)
            held += size
        self._buckets = [Bucket(group) for group in groups]
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}


class Bucket:
    def __init__(self, parameters: list[nn.Parameter]):
        sizes = [p.numel() for p in parameters]
        self.parameters = parameters
        self.missing = len(parameters)  # gradients that this backward pass has still to bring
        self._flat = torch.empty(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        self._slots = [part.view_as(p) for part, p in zip(self._flat.split(sizes), parameters, strict=True)]
        self._work = None
        self._gradients: list[Tensor] = []
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def send(self, arrived: dict[nn.Parameter, None], ranks: Ranks) -> None:
        """Start summing the gradients of the parameters in `arrived`; nothing where there are none."""
        slots = {p: slot for p, slot in zip(self.parameters, self._slots, strict=True) if p in arrived}
        if not slots:
            return
        if len(slots) < len(self._slots):
            self._flat.zero_()  # nobody reads the other slots, but their numbers would grow from sum to sum
        self._gradients, self._sums = [p.grad for p in slots], list(slots.values())
        torch._foreach_copy_(self._sums, self._gradients)
        self._work = ranks.start_sum(self._flat)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the sums, and put them in the gradients' place."""
        if self._work is not None:
            self._work.wait()
            torch._foreach_copy_(self._gradients, self._sums)
            self._work, self._gradients = None, []  # whoever drops a gradient frees it
