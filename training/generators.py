"""The random numbers of a run: the states of PyTorch's default generators, and evaluations that do not touch them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

EVALUATION_SEED = 0


def generator_states() -> dict[str, Tensor]:
    """The states of the default generators, by type of device; CUDA's is the current device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generator_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `generator_states` gave, for a run on this device."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


class OwnDraws:
    """A stream of random numbers for an evaluation, which always begins alike and leaves that of training alone."""

    def __init__(self, seed: int = EVALUATION_SEED):
        self._seed = seed
        self._states: dict[str, Tensor] | None = None  # where the stream has got to

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        """Within the block the default generators go on with this stream."""
        others = generator_states()
        if self._states is None:
            torch.manual_seed(self._seed)
        else:
            set_generator_states(self._states, device)
        try:
            yield
        finally:
            self._states = generator_states()
            set_generator_states(others, device)


@contextmanager
def no_draws(name: str) -> Iterator[None]:
    """The block, in which network `name` is evaluated, must draw nothing. Raises `ValueError` if anything did.

    An evaluation would not repeat, and training would go on with other numbers after one.
    """
    before = generator_states()
    yield
    if any(not torch.equal(state, before.get(kind, state)) for kind, state in generator_states().items()):
        raise ValueError(f"{name} draws random numbers in an evaluation; set self.draws = True in its __init__")
