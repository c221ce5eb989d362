"""An exponential moving average (EMA) of the weights: each step, average = decay × average + (1 - decay) × weights.

Of the parameters only. The puzzle embeddings are rows that change in the few steps in which their puzzle occurs, and a
table of gigabytes: an averaged model has them as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    def __init__(self, model: nn.Module, decay: float):
        """Starts from the weights as they are."""
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
