"""Many trajectories of the same puzzles in lockstep: each disguise of a puzzle, from each of several starts.

A trajectory is one start of one model on one view of a puzzle, a view being a copy by a symmetry of the puzzle's kind.
Nothing here reads a label.

Every start is drawn from a generator of its own, seeded by the seed of the search, the example, the model, the view and
the number of the start, so that it does not depend on the other rows. A model that also draws in every update, such as
EqR, draws for all rows of a forward pass at once: from a stream that is seeded by the first example of the chunk and
the place of the first row. Shapes: n puzzles, T = views × breadth trajectories of each, in this order, or t of them;
all after the same number of segments.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.act import ACTModel, InnerNetwork, map_tensors, tensors_of
from models.layers import trunc_normal
from puzzles.kind import PAD, Transform
from training.generators import OwnDraws
from training.reasoning import are_numbers

STARTS = ("fixed", "random", "noise")


@dataclass(frozen=True)
class Plan:
    """Which trajectories each puzzle gets from every model."""

    views: Sequence[Transform]  # the identity first
    breadth: int = 1  # starts of each view
    start: str = "fixed"  # one of STARTS
    sigma: float = 0.0  # of the noise
    seed: int = 0

    @property
    def trajectories(self) -> int:
        """T"""
        return len(self.views) * self.breadth


@dataclass
class Segment:
    """What the trajectories of n puzzles say after a segment."""

    answers: np.ndarray  # (n, t, cells) uint8, in the puzzle's own frame; PAD where the model's values are no numbers
    q_halt: np.ndarray  # (n, t) float64: logits of Q(halt), NaN where there is no answer
    wants_to_halt: np.ndarray  # (n, t) bool
    residual: np.ndarray  # (n, t) float64: ‖z_t − z_{t−1}‖ / ‖z_t‖ of the whole state


class Trajectories:
    """Those of one model, for one chunk of puzzles after the other, at most `rows` of them in one forward pass."""

    def __init__(self, model: ACTModel, number: int, plan: Plan, rows: int, one_shape: bool = False):
        """`number` tells the models of a search apart; with `one_shape` every pass has `rows` rows, as compiled blocks
        want it."""
        self._model, self._number, self._plan, self._rows, self._one_shape = model, number, plan, rows, one_shape
        self._device = next(model.parameters()).device
        self._part = range(0)  # which of the T
        self._first = 0  # the number of the first puzzle in the split
        self._draws: dict[int, OwnDraws] = {}  # by the place of a forward pass's first row
        self._data: dict[str, Tensor] = {}
        self._state: Any = None
        self._n = 0

    @torch.inference_mode()
    def begin(
        self, inputs: np.ndarray, identifiers: np.ndarray, examples: np.ndarray, part: range | None = None
    ) -> None:
        """Put n puzzles (n, cells), with their identifiers and their numbers in the split, at their starts: those of
        all trajectories or of a `part` of them."""
        plan, self._n, self._first, self._draws = self._plan, len(inputs), int(examples[0]), {}
        self._part = range(plan.trajectories) if part is None else part
        self._model.eval()
        copies = {view: plan.views[view].apply(inputs) for view in self._views_of_part().tolist()}
        tokens = np.stack([copies[view] for view in self._views_of_part().tolist()], axis=1)  # (n, t, cells)
        fields = {
            "inputs": tokens.reshape(-1, inputs.shape[1]),
            "puzzle_identifiers": np.repeat(identifiers, len(self._part)),
        }
        self._data = {name: torch.from_numpy(x.astype(np.int32)).to(self._device) for name, x in fields.items()}
        self._state = start_states(self._model, self._number, plan, examples, self._part)

    @torch.inference_mode()
    def advance(self) -> Segment:
        """One segment of all trajectories that are left."""
        parts = [self._advance(slice(i, i + self._rows)) for i in range(0, len(self._data["inputs"]), self._rows)]
        states, answers, *numbers = zip(*parts, strict=True)
        self._state = states[0] if len(states) == 1 else map_tensors(lambda *rows: torch.cat(rows), *states)
        shape = (self._n, len(self._part))
        q_halt, wants, residual = (torch.cat(rows).view(shape).cpu() for rows in numbers)
        q_halt = q_halt.double().numpy()
        answers = self._undone(torch.cat(answers).cpu().numpy())
        is_number = ~np.isnan(q_halt)
        answers = np.where(is_number[..., None], answers, np.uint8(PAD))
        return Segment(answers, q_halt, wants.numpy() & is_number, residual.double().numpy())

    @torch.inference_mode()
    def keep(self, puzzles: np.ndarray) -> None:
        """Only these puzzles, (n,) bool, go on."""
        rows = torch.from_numpy(np.repeat(puzzles, len(self._part))).to(self._device)
        self._state = map_tensors(lambda tensor: tensor[rows], self._state)
        self._data = {name: field[rows] for name, field in self._data.items()}
        self._n = int(puzzles.sum())

    def _advance(self, rows: slice) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        """-> of these rows: their next states, answers, Q(halt), whether they want to halt, residuals."""
        state = map_tensors(lambda tensor: tensor[rows], self._state)
        data = {name: field[rows] for name, field in self._data.items()}
        real = len(data["inputs"])
        if self._one_shape and real < self._rows:  # repeat the last row
            index = torch.arange(self._rows, device=self._device).clamp_(max=real - 1)
            data = {name: field[index] for name, field in data.items()}
            state = map_tensors(lambda tensor: tensor[index], state)
        with self._own_draws(rows.start) if self._model.inner.draws else nullcontext():
            after, logits, q_halt, q_continue = self._model.advance(state, data)
        wants = self._model.wants_to_halt(q_halt, q_continue)
        numbers = are_numbers(logits, q_halt, q_continue)
        out = (logits.argmax(-1).to(torch.uint8), q_halt.where(numbers, torch.nan), wants, residuals(state, after))
        return (map_tensors(lambda tensor: tensor[:real], after), *(tensor[:real] for tensor in out))

    def _own_draws(self, row: int) -> AbstractContextManager:
        """Within it the rows from this one on draw, from where they have got to."""
        place = self._part.start + row
        if place not in self._draws:
            self._draws[place] = OwnDraws(_seed(self._plan.seed, self._first, self._number, place))
        return self._draws[place](self._device)

    def _views_of_part(self) -> np.ndarray:
        """(t,): which view each trajectory is of."""
        return np.array(self._part) // self._plan.breadth

    def _undone(self, answers: np.ndarray) -> np.ndarray:
        """Rows of answers (n t, cells) -> (n, t, cells) in the puzzles' own frame."""
        answers, views = answers.reshape(self._n, len(self._part), -1), self._views_of_part()
        undone = np.empty_like(answers)
        for view in np.unique(views).tolist():
            undone[:, views == view] = self._plan.views[view].undo(answers[:, views == view])
        return undone


def start_states(model: ACTModel, number: int, plan: Plan, examples: np.ndarray, part: range) -> Any:
    """The states that these t trajectories of these examples start from, (n t, …).

    fixed   the network's own start
    random  every number of it drawn as EqR does, a truncated normal distribution of standard deviation 1
    noise   the network's own start + `sigma` × normal, of each view the first one without noise
    """
    assert plan.start in STARTS
    inner, device = model.inner, next(model.parameters()).device
    if plan.start == "fixed" and not inner.draws:
        return inner.initial_state(len(examples) * len(part))
    places = [(example, *divmod(one, plan.breadth)) for example in examples.tolist() for one in part]
    seeds = [_seed(plan.seed, example, number, view, start) for example, view, start in places]
    state = _own_starts(inner, seeds, device)
    if plan.start == "fixed":
        return state
    if inner.draws:  # else the same numbers would be drawn that its own start is made of
        seeds = [_seed(seed, 1) for seed in seeds]
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    is_first = torch.tensor([start == 0 for *_, start in places], device=device)

    def started(own: Tensor) -> Tensor:
        if not own.is_floating_point():
            return own
        shape = own.shape[1:]
        if plan.start == "random":
            return torch.stack([trunc_normal(shape, own.dtype, device, generator) for generator in generators])
        noise = torch.stack([torch.randn(shape, device=device, generator=generator) for generator in generators])
        noise[is_first] = 0
        return own + (plan.sigma * noise).to(own.dtype)

    return map_tensors(started, state)


def _own_starts(inner: InnerNetwork, seeds: Sequence[int], device: torch.device) -> Any:
    """The network's own starts; if it draws them, each is drawn by its seed."""
    if not inner.draws:
        return inner.initial_state(len(seeds))
    rows = []
    for seed in seeds:
        with OwnDraws(seed)(device):
            rows.append(inner.initial_state(1))
    return map_tensors(lambda *starts: torch.cat(starts), *rows)


def residuals(before: Any, after: Any) -> Tensor:
    """(rows,) float32: how much a segment has changed the state, ‖after − before‖ / ‖after‖ over all its floats.

    NaN where there are none.
    """
    pairs = [pair for pair in zip(tensors_of(before), tensors_of(after), strict=True) if pair[1].is_floating_point()]
    rows = next(tensors_of(after)).shape[0]
    floats = [(old.float().reshape(rows, -1), new.float().reshape(rows, -1)) for old, new in pairs]
    change = sum(((new - old).square().sum(1) for old, new in floats), torch.zeros(()))
    size = sum((new.square().sum(1) for _, new in floats), torch.zeros(()))
    return (change / size).sqrt().expand(rows)


def state_bytes(inner: InnerNetwork) -> int:
    """What the state of one trajectory takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(inner.initial_state(1)))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
