"""How many dimensions the states use: the participation ratio of their trajectories.

PR = (Σλ)² / Σλ² over the eigenvalues λ of the covariance matrix (Wang et al. 2025, section "Brain Correspondence"): D
where all D directions vary alike, 1 where the states move along one line. The paper compares PR(z_H) with PR(z_L),
over more and more tasks, in a trained model and in one with random weights.

The paper does not say what one sample is. Here it is the state of one cell of one puzzle after one reasoning step, a
vector of hidden_size numbers; the positions of the puzzle embedding, which are no cells, are left out.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from evaluators.steps import reasoning_steps
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1


def participation_ratio(covariance: Tensor) -> float:
    """Covariance (D, D) -> PR in [1, D]; 0 where nothing varies. Σλ is its trace, Σλ² its squared Frobenius norm."""
    total, squares = covariance.trace().item(), covariance.square().sum().item()
    return total**2 / squares if squares > 0 else 0.0


class Moments:
    """The covariance of samples that come in parts, in float64."""

    def __init__(self, dimensions: int):
        self.count = 0
        self.sum = torch.zeros(dimensions, dtype=torch.float64)
        self.outer = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    def add(self, samples: Tensor) -> None:
        """(n, D), on any device."""
        samples = samples.cpu().double()  # MPS has no float64
        self.count += len(samples)
        self.sum += samples.sum(0)
        self.outer += samples.T @ samples

    def covariance(self) -> Tensor:
        mean = self.sum / self.count
        return self.outer / self.count - torch.outer(mean, mean)


def participation_curve(
    model: HierarchicalReasoningModel_ACTV1,
    inputs: Tensor,  # (N, S)
    puzzle_identifiers: Tensor,  # (N,)
    counts: Sequence[int],
    *,
    batch_size: int,
    max_steps: int,
    after_step: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """PR of `z_H` and of `z_L` over the first n puzzles, for each n of the ascending `counts`."""
    moments = {name: Moments(model.config.hidden_size) for name in ("z_H", "z_L")}
    ratios = {name: [] for name in moments}
    for first, last in batches(counts, batch_size):
        for step in reasoning_steps(model, inputs[first:last], puzzle_identifiers[first:last], max_steps):
            for name, states in (("z_H", step.inner_carry.z_H), ("z_L", step.inner_carry.z_L)):
                moments[name].add(states[:, model.inner.puzzle_emb_len :].flatten(0, 1))
            after_step()
        if last in counts:
            for name, collected in moments.items():
                ratios[name].append(participation_ratio(collected.covariance()))
    return ratios


def batches(counts: Sequence[int], batch_size: int) -> list[tuple[int, int]]:
    """Slices of at most `batch_size` puzzles that end at every count."""
    slices, start = [], 0
    for count in counts:
        for first in range(start, count, batch_size):
            slices.append((first, min(first + batch_size, count)))
        start = count
    return slices


def doubling(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`, which is always the last."""
    return sorted({*(2 ** np.arange(int(np.log2(largest)) + 1)).tolist(), largest})
