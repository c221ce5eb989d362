"""Everything that changes while a run goes on: the model, its optimisers, the carry and the step counter."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from dataset.common import PuzzleDatasetMetadata
from models.adam_atan2 import adam_atan2
from models.losses import ACTLossHead
from models.sparse_embedding import SparseSignSGD
from puzzle_dataset import Batch
from training.averaging import WeightAverage
from training.config import PretrainConfig
from training.distributed import Ranks
from training.weights import load_weights


@dataclass(kw_only=True)
class Progress:
    """How far a run is: plain values, which a saved state keeps as they are. Those marked * are rank 0's alone."""

    step: int = 0
    passes: int = 0  # over the training data, evaluated
    batches: int = 0  # of the pass at hand
    evaluated: int | None = None  # the step of the last evaluation
    best: dict | None = None  # * metric, value and step of the best evaluation
    since_best: int = 0  # * evaluations after it
    recent: list[list[float]] = field(default_factory=list)  # * of the last steps, for early stopping
    wandb_id: str | None = None  # *


@dataclass(kw_only=True)
class TrainState(Progress):
    head: ACTLossHead
    optimizers: list[torch.optim.Optimizer]
    base_lrs: list[float]  # one an optimiser; the last is the one that is logged
    total_steps: int
    carry: Any = None
    ema: WeightAverage | None = None

    def progress(self) -> dict:
        return {name.name: getattr(self, name.name) for name in fields(Progress)}


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

    optimizers, base_lrs = create_optimizers(head, config, ranks)
    return TrainState(
        head=head,
        optimizers=optimizers,
        base_lrs=base_lrs,
        total_steps=total_steps(config, metadata),
        ema=None if config.ema_decay is None else WeightAverage(head, config.ema_decay),
    )


def create_optimizers(
    head: ACTLossHead, config: PretrainConfig, ranks: Ranks
) -> tuple[list[torch.optim.Optimizer], list[float]]:
    """-> (optimisers, the peak lr of each); the lr is set before every step, see `learning_rate`."""
    optimizers, base_lrs = [], []
    puzzle_emb = head.model.puzzle_emb
    if puzzle_emb is not None:
        optimizers.append(
            SparseSignSGD(
                puzzle_emb.buffers(), world_size=ranks.world_size, lr=0, weight_decay=config.puzzle_emb_weight_decay
            )
        )
        base_lrs.append(config.puzzle_emb_lr)
    if config.freeze == "weights":
        head.requires_grad_(False)  # parameters; the puzzle embeddings are buffers
    else:
        betas = (config.beta1, config.beta2)
        optimizers.append(adam_atan2(head.parameters(), lr=0, weight_decay=config.weight_decay, betas=betas))
        base_lrs.append(config.lr)
    return optimizers, base_lrs


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
    if state.ema is not None:
        state.ema.update()
    return out.metrics, lr
