"""Everything that changes while a run goes on: the model, its optimisers, the carry and the step counter."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from dataset.common import PuzzleDatasetMetadata
from models.adam_atan2 import adam_atan2
from models.losses import ACTLossHead
from models.sparse_embedding import SparseSignSGD
from puzzle_dataset import Batch
from training.config import PretrainConfig
from training.distributed import Ranks
from training.weights import load_weights


@dataclass
class TrainState:
    head: ACTLossHead
    optimizers: list[torch.optim.Optimizer]
    base_lrs: list[float]  # one an optimiser; the last is the one that is logged
    total_steps: int
    step: int = 0
    passes: int = 0  # over the training data, evaluated
    batches: int = 0  # of the pass at hand
    carry: Any = None
    best: dict | None = None  # rank 0's: metric, value and step of the best evaluation


def create_state(
    config: PretrainConfig, metadata: PuzzleDatasetMetadata, ranks: Ranks, device: torch.device
) -> TrainState:
    """Build the model on the device, load or broadcast its weights, and set up the optimisers."""
    with torch.device(device):
        head = config.arch.build(
            batch_size=config.global_batch_size // ranks.world_size,
            seq_len=metadata.seq_len,
            vocab_size=metadata.vocab_size,
            num_puzzle_identifiers=metadata.num_puzzle_identifiers,
        )
    if config.load_checkpoint is not None:
        load_weights(head, config.load_checkpoint, other_puzzles=config.load_checkpoint_puzzle_emb)
    ranks.broadcast_module(head)

    # The lr is set before every step, see `learning_rate`.
    betas = (config.beta1, config.beta2)
    optimizers = [adam_atan2(head.parameters(), lr=0, weight_decay=config.weight_decay, betas=betas)]
    base_lrs = [config.lr]
    puzzle_emb = head.model.puzzle_emb
    if puzzle_emb is not None:
        sparse = SparseSignSGD(
            puzzle_emb.buffers(), world_size=ranks.world_size, lr=0, weight_decay=config.puzzle_emb_weight_decay
        )
        optimizers.insert(0, sparse)
        base_lrs.insert(0, config.puzzle_emb_lr)
    return TrainState(head, optimizers, base_lrs, total_steps(config, metadata))


def total_steps(config: PretrainConfig, metadata: PuzzleDatasetMetadata) -> int:
    examples = config.epochs * metadata.total_groups * metadata.mean_puzzle_examples
    return int(examples / config.global_batch_size)


def learning_rate(step: int, base: float, config: PretrainConfig, total: int) -> float:
    """Linear warm-up, then a cosine down to `lr_min_ratio`; `step` counts from 1."""
    if step < config.lr_warmup_steps:
        return base * step / max(1, config.lr_warmup_steps)
    progress = (step - config.lr_warmup_steps) / max(1, total - config.lr_warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return base * (config.lr_min_ratio + max(0.0, (1 - config.lr_min_ratio) * cosine))


def train_step(
    state: TrainState, batch: Batch, config: PretrainConfig, ranks: Ranks
) -> tuple[dict[str, torch.Tensor], float]:
    """One step on this rank's batch; -> (sums of this rank's metrics, learning rate)."""
    state.step += 1
    state.batches += 1
    if state.carry is None:
        state.carry = state.head.initial_carry(batch)
    out = state.head(carry=state.carry, batch=batch, return_keys=[])
    state.carry = out.carry
    (out.loss / config.global_batch_size).backward()
    ranks.sum_gradients(state.head.parameters())
    lr = 0.0
    for optimizer, base_lr in zip(state.optimizers, state.base_lrs, strict=True):
        lr = learning_rate(state.step, base_lr, config, state.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    return out.metrics, lr
