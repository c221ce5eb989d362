"""One training step, and everything that it changes: model, optimisers, carry, average, and the step counter.

A step is forward, backward, the ranks' exchange, optimisers, average; it runs kernel by kernel, or as CUDA graphs
(training/cuda_graph.py).
"""

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataset.format import PuzzleDatasetMetadata
from errors import UserError, some_of
from models.act import Carry
from models.losses import ACTLossHead
from models.sparse_embedding import SparseSignSGD
from puzzle_dataset import Batch
from training.checkpoints import find_checkpoint, load_weights
from training.config import PretrainConfig
from training.cuda_graph import StepGraph, uses_graph
from training.distributed import GradientSum, Ranks
from training.memory import check_available
from training.optimizers import check_optimizer, weight_optimizers
from training.stopping import EarlyStopping


@dataclass(kw_only=True)
class TrainState:
    """What a run changes. Its plain values are saved as they are (`progress`); only rank 0 has those marked *."""

    head: ACTLossHead
    summed: nn.Module  # the head, but without `sums` `backward()` leaves sums over the ranks in the gradients
    sums: GradientSum | None  # with graphs and several ranks
    optimizers: list[torch.optim.Optimizer]
    base_lrs: list[float]  # one per optimiser; the last is logged
    total_steps: int
    early: EarlyStopping
    graphs: dict[Hashable, StepGraph] | None  # by what the step depends on; None: steps run kernel by kernel
    carry: Carry | None = None
    ema: "WeightAverage | None" = None

    step: int = 0
    passes: int = 0  # over the training data, up to the evaluation
    batches: int = 0  # taken from the current pass
    evaluated: int | None = None  # the step of the last evaluation
    best: dict | None = None  # * metric, value, step and checkpoint of the best evaluation
    wandb_id: str | None = None  # *
    evaluated_on: str | None = None  # which puzzles the last evaluation was of, in words

    PLAIN = ("step", "passes", "batches", "evaluated", "best", "wandb_id", "evaluated_on")

    def progress(self) -> dict:
        return {name: getattr(self, name) for name in self.PLAIN} | self.early.progress()

    def load_progress(self, saved: dict) -> None:
        for name in self.PLAIN:
            setattr(self, name, saved.get(name, getattr(self, name)))  # an earlier version may not have known it
        self.early.load_progress(saved)

    def forget_best(self) -> None:
        """The next evaluation is the best so far."""
        self.best = None
        self.early.note_evaluation(improved=True)

    def averaged(self):
        """A context in which the model computes with the average of its weights, if there is one."""
        return nullcontext() if self.ema is None else self.ema.in_the_model()

    def note_best(self, exact_accuracy: float, checkpoint: str) -> bool:
        """Keep the record of the best evaluation, the first among equals; -> whether it is this one."""
        improved = self.best is None or exact_accuracy > self.best["value"]
        if improved:
            metric = "eval/exact_accuracy"
            self.best = {"metric": metric, "value": exact_accuracy, "step": self.step, "checkpoint": checkpoint}
        self.early.note_evaluation(improved)
        return improved


def create_state(
    config: PretrainConfig, metadata: PuzzleDatasetMetadata, ranks: Ranks, device: torch.device
) -> TrainState:
    """Build the model on the device, load or broadcast its weights, and set up the optimisers."""
    check_optimizer(config.optimizer)
    head = config.arch.build_for(metadata, batch_size=config.global_batch_size // ranks.world_size, device=device)
    if config.load_checkpoint is not None:
        load_weights(head, find_checkpoint(config.load_checkpoint), other_puzzles=config.load_checkpoint_puzzle_emb)
    ranks.broadcast_module(head)

    if config.freeze and head.model.puzzle_emb is None:
        raise UserError(f"freeze=weights trains puzzle embeddings, but {config.arch.name} has none here")
    graphed = config.optimizer == "adam_atan2" and uses_graph(config.cuda_graph, device, ranks)
    optimizers, base_lrs = create_optimizers(head, config, ranks, graphed)
    trained = sum(p.numel() * p.element_size() for p in head.parameters() if p.requires_grad)
    summed_apart = graphed and ranks.world_size > 1
    copies = 3 + (config.ema_decay is not None) + summed_apart
    check_available(
        copies * trained, "training (gradients, two moments, perhaps the average) needs as much again", device
    )
    sums = GradientSum(head) if summed_apart else None
    return TrainState(
        head=head,
        summed=ranks.sum_gradients_of(head) if sums is None else head,
        sums=sums,
        optimizers=optimizers,
        base_lrs=base_lrs,
        total_steps=total_steps(config, metadata),
        early=EarlyStopping(config.early_stop, ranks),
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
        of_weights = weight_optimizers(
            config.optimizer, head.parameters(), weight_decay=config.weight_decay, betas=(config.beta1, config.beta2),
            graphed=graphed,
        )  # fmt: skip
        optimizers += of_weights
        base_lrs += [config.lr] * len(of_weights)
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


def train_step(state: TrainState, batch: Batch, config: PretrainConfig) -> tuple[dict[str, Tensor], float]:
    """One step on this rank's batch; -> (sums of this rank's metrics, learning rate)."""
    state.step += 1
    state.batches += 1
    lr = set_learning_rates(state, config)
    is_first = state.carry is None
    if is_first:
        state.carry = state.head.initial_carry(batch)
    depends_on = state.head.model.inner.begin_step(state.step)
    if state.graphs is not None:
        # A graph holds all of a step but the counting on the host, see `AdamATan2.prepare`.
        if depends_on not in state.graphs:
            state.graphs[depends_on] = step_graph(state, config)
        graph = state.graphs[depends_on]
        if graph.ready(batch):
            for optimizer in state.optimizers:
                optimizer.prepare()
            return graph.replay(batch), lr
    metrics = find_gradients(state, batch, config)
    if is_first:
        check_gradients(state)
    if state.sums is not None:
        state.sums.collect()
        state.sums.exchange()
    update(state, lambda optimizer: optimizer.step())
    return metrics, lr


def step_graph(state: TrainState, config: PretrainConfig) -> StepGraph:
    puzzle_embeddings = [optimizer for optimizer in state.optimizers if isinstance(optimizer, SparseSignSGD)]

    def gradients(batch: Batch) -> dict[str, Tensor]:
        metrics = find_gradients(state, batch, config)
        if state.sums is not None:
            state.sums.collect()
            for optimizer in puzzle_embeddings:
                optimizer.collect()
        return metrics

    def exchange() -> None:
        state.sums.exchange()
        for optimizer in puzzle_embeddings:
            optimizer.exchange()

    def apply() -> None:
        update(state, lambda optimizer: optimizer.apply())

    return StepGraph(gradients, None if state.sums is None else exchange, apply)


def find_gradients(state: TrainState, batch: Batch, config: PretrainConfig) -> dict[str, Tensor]:
    """Forward and backward -> metrics. The carry is updated in place."""
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    out = state.summed(carry=state.carry, batch=batch)
    # Divided by the global batch, so that the sum over the ranks is the gradient of the mean.
    (out.loss / config.global_batch_size).backward()
    state.carry.copy_(out.carry)
    return out.metrics


def update(state: TrainState, call: Callable[[torch.optim.Optimizer], None]) -> None:
    """Everything that changes the weights: `call` for every optimiser, then the average."""
    if state.sums is not None:
        state.sums.give_back()
    for optimizer in state.optimizers:
        call(optimizer)
    if state.ema is not None:
        state.ema.update()


def check_gradients(state: TrainState) -> None:
    """Refuse parameters that the first step left without a gradient: they would never learn, and several ranks could
    not sum what only some have."""
    missing = [name for name, p in state.head.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise UserError(
            f"the loss does not depend on {some_of(missing, 3)}; use or remove these parameters of the architecture"
        )


def set_learning_rates(state: TrainState, config: PretrainConfig) -> float:
    """Set every optimiser's learning rate; -> the last one's, which is logged."""
    lr = 0.0
    for optimizer, base_lr in zip(state.optimizers, state.base_lrs, strict=True):
        lr = learning_rate(state.step, base_lr, config, state.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
    return lr


class WeightAverage:
    """An exponential moving average of the weights: average = decay × average + (1 - decay) × weights, each step.

    Only parameters are averaged. The puzzle embeddings are a table of gigabytes, whose rows change only in the few
    steps in which their puzzle occurs: an averaged model has them as they are.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start from the weights as they are now."""
        self._weight = 1 - decay
        names, self._parameters = zip(*model.named_parameters(), strict=True)
        self._average = dict(zip(names, (p.detach().clone() for p in self._parameters), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self._average.values()), self._parameters, self._weight)

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Within the block the model computes with the average, in the same storage."""
        weights = [p.detach().clone() for p in self._parameters]
        self._copy(list(self._average.values()))
        try:
            yield
        finally:
            self._copy(weights)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._parameters, values)

    def state_dict(self) -> dict[str, Tensor]:
        return self._average

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        assert saved.keys() == self._average.keys()
        for name, average in self._average.items():
            average.copy_(saved[name])
