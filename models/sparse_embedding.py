"""One learned vector per puzzle: a table too large for a dense optimiser, trained by sign-SGD on the rows in use.

The rows of a batch are copied into `local_weights`, a leaf that autograd fills; `SparseSignSGD` then gathers the
gradients of all ranks and updates each touched row once. Untouched rows stay as they are: no decay, no state.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.adam_atan2 import send_
from models.layers import trunc_normal_init_


class SparseEmbedding(nn.Module):
    """`weights` (num_embeddings, dim) is saved; `local_weights` (batch, dim) and `local_ids` (batch,) hold a batch.

    In training a batch must have exactly `batch_size` rows; in evaluation any number will do.
    """

    weights: Tensor
    local_weights: Tensor
    local_ids: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, batch_size: int, init_std: float, cast_to: torch.dtype):
        super().__init__()
        self.cast_to = cast_to
        self.register_buffer("weights", trunc_normal_init_(torch.empty(num_embeddings, embedding_dim), std=init_std))
        local = torch.zeros(batch_size, embedding_dim, requires_grad=True)
        self.register_buffer("local_weights", local, persistent=False)
        self.register_buffer("local_ids", torch.zeros(batch_size, dtype=torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return self.weights[ids].to(self.cast_to)
        with torch.no_grad():
            self.local_weights.copy_(self.weights[ids])
            self.local_ids.copy_(ids)
        return self.local_weights.to(self.cast_to)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.local_weights = self.local_weights.detach().requires_grad_()  # a leaf that was moved is no longer one
        return self


class SparseSignSGD(torch.optim.Optimizer):
    """Sign-SGD with decoupled weight decay for the buffers of one `SparseEmbedding`.

    For each row that occurs on any rank: `w = w * (1 - lr * weight_decay) - lr * sign(sum of its gradients)`.
    `step` is `prepare`, `collect`, `exchange`, which gathers what the ranks have found, and `apply`. The first and the
    last are as in `AdamATan2`; `exchange` reads and writes what lies at the same addresses in every step.
    """

    def __init__(self, buffers: Iterable[Tensor], world_size: int, lr: float = 1e-3, weight_decay: float = 1e-2):
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr ({lr}) and weight_decay ({weight_decay}) must not be negative")
        super().__init__(buffers, dict(lr=lr, weight_decay=weight_decay))
        self.world_size = world_size
        self._factors = [self._table(group).new_empty(2) for group in self.param_groups]
        # Of each group the gradients and ids of this rank, and of all ranks
        self._mine, self._all = (
            [self._places(group, ranks) for group in self.param_groups] for ranks in (1, world_size)
        )

    def step(self, closure=None) -> None:
        assert closure is None
        self.prepare()
        self.collect()
        self.exchange()
        self.apply()

    @torch.no_grad()
    def prepare(self) -> None:
        for group, factors in zip(self.param_groups, self._factors, strict=True):
            send_(factors, (1 - group["lr"] * group["weight_decay"], group["lr"]))

    @torch.no_grad()
    def collect(self) -> None:
        if self.world_size > 1:
            for group, mine in zip(self.param_groups, self._mine, strict=True):
                _, local_weights, local_ids = _roles(group["params"])
                if local_weights.grad is not None:
                    torch._foreach_copy_(list(mine), [local_weights.grad, local_ids])

    @torch.no_grad()
    def exchange(self) -> None:
        if self.world_size > 1:
            for mine, gathered in zip(self._mine, self._all, strict=True):
                for rows, place in zip(mine, gathered, strict=True):
                    dist.all_gather(list(place.chunk(self.world_size)), rows)

    @torch.no_grad()
    def apply(self) -> None:
        for group, factors, gathered in zip(self.param_groups, self._factors, self._all, strict=True):
            weights, local_weights, local_ids = _roles(group["params"])
            if local_weights.grad is not None:
                grads, ids = (local_weights.grad, local_ids) if self.world_size == 1 else gathered
                _sign_update(weights, ids.long(), grads, *factors.unbind())

    def _table(self, group: dict) -> Tensor:
        weights, _, _ = _roles(group["params"])
        return weights

    def _places(self, group: dict, ranks: int) -> tuple[Tensor, ...]:
        """Room for the gradients and ids of so many ranks; with one rank there is nothing to send."""
        if self.world_size == 1:
            return ()
        return tuple(rows.detach().repeat(ranks, *[1] * (rows.ndim - 1)) for rows in _roles(group["params"])[1:])


def _roles(buffers: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tell the three buffers apart, in whichever order they came."""
    (local_weights,) = (b for b in buffers if b.requires_grad)
    (local_ids,) = (b for b in buffers if b.ndim == 1)
    (weights,) = (b for b in buffers if b.ndim == 2 and not b.requires_grad)
    return weights, local_weights, local_ids


def _sign_update(weights: Tensor, ids: Tensor, grads: Tensor, decay: Tensor, lr: Tensor) -> None:
    """Update the rows `ids` (n,) of `weights` once each, by the sum of their `grads` (n, dim).

    All shapes are static (no `unique`, which would make the device wait for the host): equal ids become neighbours by
    sorting, their gradients are summed into one slot, and every occurrence writes the same new row.
    """
    ids, order = ids.sort(stable=True)
    first = torch.ones_like(ids)
    first[1:] = ids[1:] != ids[:-1]
    slot = first.cumsum(0) - 1  # (n,): which distinct id
    total = torch.zeros_like(grads).index_add_(0, slot, grads[order])
    rows = weights[ids] * decay - lr * total[slot].sign()
    weights.index_copy_(0, ids, rows.to(weights.dtype))
