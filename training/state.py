"""Everything that changes while a run goes on: the model, its optimisers, the carry and the step counter."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from dataset.format import PuzzleDatasetMetadata
from models.adam_atan2 import adam_atan2
from models.losses import ACTLossHead
from models.sparse_embedding import SparseSignSGD
from training.averaging import WeightAverage
from training.config import PretrainConfig
from training.cuda_graph import StepGraph, uses_graph
from training.distributed import Ranks
from training.gradients import GradientBuckets
from training.weights import load_weights


@dataclass(kw_only=True)
class Progress:
    """How far a run is: plain values, which a saved state keeps as they are. Those marked * are rank 0's alone."""

    step: int = 0
    passes: int = 0  # over the training data, evaluated
    batches: int = 0  # of the pass at hand
    ended_early: bool = False  # by a rule of early_stop
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
    gradients: GradientBuckets
    graphs: dict[bool, StepGraph] | None  # with and without a Q target; None: steps are launched kernel by kernel
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

    graphed = uses_graph(config.cuda_graph, device, ranks)
    optimizers, base_lrs = create_optimizers(head, config, ranks, graphed)
    return TrainState(
        head=head,
        optimizers=optimizers,
        base_lrs=base_lrs,
        total_steps=total_steps(config, metadata),
        gradients=GradientBuckets(head.parameters(), ranks),
        graphs={} if graphed else None,
        ema=None if config.ema_decay is None else WeightAverage(head, config.ema_decay),
    )


def create_optimizers(
    head: ACTLossHead, config: PretrainConfig, ranks: Ranks, graphed: bool = False
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
        optimizers.append(adam_atan2(head.parameters(), graphed, lr=0, weight_decay=config.weight_decay, betas=betas))
        base_lrs.append(config.lr)
    return optimizers, base_lrs


def total_steps(config: PretrainConfig, metadata: PuzzleDatasetMetadata) -> int:
    examples = config.epochs * metadata.total_groups * metadata.mean_puzzle_examples
    return int(examples / config.global_batch_size)
