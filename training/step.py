"""One training step: forward, backward, optimisers, average; kernel by kernel, or as a CUDA graph."""

import math

from torch import Tensor

from puzzle_dataset import Batch
from training.config import PretrainConfig
from training.cuda_graph import StepGraph
from training.state import TrainState


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
    if state.carry is None:
        state.carry = state.head.initial_carry(batch)
    q_target = state.head.model.q_target_due(state.step)
    if state.graphs is not None:
        if q_target not in state.graphs:
            state.graphs[q_target] = StepGraph(lambda batch: on_the_device(state, batch, config, q_target))
        graph = state.graphs[q_target]
        if graph.ready(batch):
            for optimizer in state.optimizers:
                optimizer.prepare()
            return graph.replay(batch), lr
    metrics = forward_and_backward(state, batch, config, q_target)
    for optimizer in state.optimizers:
        optimizer.step()
    if state.ema is not None:
        state.ema.update()
    return metrics, lr


def set_learning_rates(state: TrainState, config: PretrainConfig) -> float:
    """-> the last optimiser's, which is logged."""
    lr = 0.0
    for optimizer, base_lr in zip(state.optimizers, state.base_lrs, strict=True):
        lr = learning_rate(state.step, base_lr, config, state.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
    return lr


def forward_and_backward(state: TrainState, batch: Batch, config: PretrainConfig, q_target: bool) -> dict[str, Tensor]:
    """-> metrics; the carry is moved on in place, and the gradients are there."""
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    out = state.head(carry=state.carry, batch=batch, q_target=q_target)
    with state.gradients.summing():  # the loss is divided by the global batch: the sum is the gradient of its mean
        (out.loss / config.global_batch_size).backward()
    state.carry.copy_(out.carry)
    return out.metrics


def on_the_device(state: TrainState, batch: Batch, config: PretrainConfig, q_target: bool) -> dict[str, Tensor]:
    """What a graph holds of a step: all but the host's counting, see `AdamATan2.prepare`."""
    metrics = forward_and_backward(state, batch, config, q_target)
    for optimizer in state.optimizers:
        optimizer.apply()
    if state.ema is not None:
        state.ema.update()
    return metrics
