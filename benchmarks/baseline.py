"""The baseline of every ratio: the same work, written like a straightforward port of the original.

    model        the Q target by a whole forward pass, logits included; weights cast in every pass; rotations that
                 autograd takes apart; torch.compile of the whole model if asked for
    optimisers   AdamATan2 as training has it without a graph: the CUDA extension where it is installed, else over all
                 tensors at once; sign-SGD on the rows that `unique` finds
    ranks        one all-reduce per parameter
    metrics      stacked, reduced and fetched every step, which waits for the device
    sampler      one Python step and one scalar draw per group
    evaluation   the whole loss, and a wait for the device, after every reasoning step; torch.compile as above

It computes the same as ours: benchmarks/step.py, loader.py and evaluate.py check that before they time anything.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset

from dataset.format import IGNORE_LABEL_ID, PuzzleDatasetMetadata, PuzzleSet
from models.act import InnerNetwork
from models.layers import Attention
from models.losses import ACTLossHead, ACTOutput
from puzzle_dataset import Batch, PuzzleDataset
from training.config import PretrainConfig
from training.distributed import Ranks
from training.metrics import train_metrics
from training.step import create_state, learning_rate


def as_the_original(head: ACTLossHead) -> ACTLossHead:
    """The same head; its Q target takes a whole forward pass, weights are cast in every pass, rotations are plain."""
    own = type(head.model.inner)
    plain = {"q_values": InnerNetwork.q_values, "cast_once": lambda self: nullcontext()}
    head.model.inner.__class__ = type(f"Plain{own.__name__}", (own,), plain)
    for module in head.modules():
        if isinstance(module, Attention):
            module.rotate = plain_rotary
    return head


def plain_rotary(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions as a formula that autograd takes apart."""
    cos, sin = (table[: x.shape[1]].unsqueeze(-2) for table in cos_sin)
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def without_our_kernels(config: PretrainConfig) -> PretrainConfig:
    """The same run with PyTorch's kernels alone, without a CUDA graph."""
    known = {"mixing": "torch"} if hasattr(config.arch, "mixing") else {}
    return config.model_copy(update={"cuda_graph": "off", "arch": config.arch.model_copy(update=known)})


class PlainTrainer:
    """The model and optimisers of a run; `step` does what train_step and reduce_metrics do in pretrain.py."""

    def __init__(self, config: PretrainConfig, metadata: PuzzleDatasetMetadata, ranks: Ranks, device: torch.device):
        state = create_state(without_our_kernels(config), metadata, ranks, device)
        self.config, self.ranks, self.total_steps = config, ranks, state.total_steps
        self.optimizer = state.optimizers[-1]
        self.head, self.carry, self.steps = as_the_original(state.head).train(), None, 0
        self.model = self.head

    def compile(self) -> None:
        self.model = torch.compile(self.head, dynamic=False)

    def step(self, batch: Batch) -> dict[str, float]:
        """-> the metrics that are logged."""
        self.steps += 1
        if self.carry is None:
            self.carry = self.head.initial_carry(batch)
        self.head.model.inner.begin_step(self.steps)
        self.carry, loss, metrics, _, _ = self.model(carry=self.carry, batch=batch, return_keys=[])
        (loss / self.config.global_batch_size).backward()
        if self.ranks.world_size > 1:
            for p in self.head.parameters():
                if p.grad is not None:
                    dist.all_reduce(p.grad)
        self._update_puzzle_embeddings()
        for group in self.optimizer.param_groups:
            group["lr"] = lr = self._lr(self.config.lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        stacked = torch.stack(list(metrics.values()))
        if self.ranks.world_size > 1:
            dist.reduce(stacked, dst=0)
        sums = dict(zip(metrics, stacked.tolist(), strict=True))
        return train_metrics(sums, self.config.global_batch_size, lr)

    def _lr(self, base: float) -> float:
        return learning_rate(self.steps, base, self.config, self.total_steps)

    @torch.no_grad()
    def _update_puzzle_embeddings(self) -> None:
        table = self.head.model.puzzle_emb
        if table is None:
            return
        grads, ids, lr = table.local_weights.grad, table.local_ids, self._lr(self.config.puzzle_emb_lr)
        if self.ranks.world_size > 1:
            grads, ids = self._gathered(grads), self._gathered(ids)
        rows, inverse = ids.long().unique(return_inverse=True)
        summed = grads.new_zeros(len(rows), grads.shape[1]).index_add_(0, inverse, grads)
        decayed = table.weights[rows] * (1 - lr * self.config.puzzle_emb_weight_decay)
        table.weights[rows] = decayed - lr * summed.sign()
        table.local_weights.grad = None

    def _gathered(self, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(self.ranks.world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)


class PlainDataset(PuzzleDataset, IterableDataset):
    """Training batches by the scalar sampler, without the checks that ours makes of every batch."""

    def __iter__(self) -> Iterator[tuple[str, Batch, int]]:
        config = self.config
        for name, puzzles in self.sets.items():
            self._passes_begun += 1  # one set per pass: more would have seeds of their own
            rng = np.random.Generator(np.random.Philox(seed=config.seed + self._passes_begun))
            for examples, puzzle_ids in plain_batches(rng, puzzles, config.epochs_per_iter, config.global_batch_size):
                mine = slice(config.rank * self.local_batch_size, (config.rank + 1) * self.local_batch_size)
                yield name, self._plain_collate(puzzles, examples[mine], puzzle_ids[mine]), config.global_batch_size

    def _plain_collate(self, puzzles: PuzzleSet, examples: np.ndarray, puzzle_ids: np.ndarray) -> Batch:
        batch = {
            "inputs": puzzles.inputs[examples].astype(np.int32),
            "labels": puzzles.labels[examples].astype(np.int32),
            "puzzle_identifiers": puzzles.puzzle_identifiers[puzzle_ids].astype(np.int32),
        }
        if self.metadata.ignore_label_id is not None:
            batch["labels"][batch["labels"] == self.metadata.ignore_label_id] = IGNORE_LABEL_ID
        return {key: torch.from_numpy(values) for key, values in batch.items()}


def plain_batches(
    rng: np.random.Generator, puzzles: PuzzleSet, epochs: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As puzzle_dataset.sample_batches, group by group; the results are equal if every puzzle has one example.

    With several, the original drew their order from another generator, and so does this: the puzzles are the same, but
    not the order of their examples.
    """
    num_groups = len(puzzles.group_indices) - 1
    order = np.concatenate([rng.permutation(num_groups) for _ in range(epochs)])
    shuffle = np.random.default_rng(0)
    examples, owners, size = [], [], 0
    for group in order:
        puzzle = rng.integers(puzzles.group_indices[group], puzzles.group_indices[group + 1])
        start, end = int(puzzles.puzzle_indices[puzzle]), int(puzzles.puzzle_indices[puzzle + 1])
        taken = min(end - start, batch_size - size)
        examples.append(start + shuffle.permutation(end - start)[:taken])
        owners.append(np.full(taken, puzzle))
        size += taken
        if size == batch_size:
            yield np.concatenate(examples), np.concatenate(owners)
            examples, owners, size = [], [], 0


def plain_evaluation(
    head: ACTLossHead, step: Callable[..., ACTOutput], dataset: PuzzleDataset, device: torch.device
) -> dict[str, float]:
    """The sums of the metrics over a split, by the original's rule; one process. `step` is the head, or compiled."""
    sums: dict[str, Tensor] = {}
    head.eval()
    with torch.inference_mode():
        for _, batch, _ in dataset:
            batch = {name: field.to(device) for name, field in batch.items()}
            carry = head.initial_carry(batch)
            while True:
                carry, _, metrics, _, all_finished = step(carry=carry, batch=batch, return_keys=[])
                if all_finished:
                    break
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0) + value
    return {key: value.item() for key, value in sums.items()}
