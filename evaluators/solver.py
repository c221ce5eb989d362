"""A trained model for Python, which is asked one puzzle or many: docs/python.md.

from solve import Solver

solver = Solver.load("<run>/step_<n>")   # or the run's folder, "user/name" of the Hugging Face Hub, or nothing
found = solver.solve("53..7....6..195...")
found.answer, found.grid, found.steps, found.halted_at, found.confidence, found.valid
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dataset.format import PuzzleDatasetMetadata
from errors import UserError
from evaluators.arc_query import identifiers_at_hand, read_query
from evaluators.pretrained import NAME_ONE, no_model_of, pretrained_models, read_for_pretrained
from evaluators.solution import Answer, Solution, dataset_at_hand, description_in, judge, read_typed, think
from models.act import ACTModel
from puzzles.kind import Kind, Puzzle, all_kinds, with_article
from training.checkpoints import check_data, find_checkpoint, load_model_alone, step_of
from training.config import PretrainConfig, load_config
from training.distributed import select_device
from training.predictions import MAX_STEPS
from training.reasoning import HALTING

TOKENS = 1 << 14  # in a forward pass: 168 Sudokus of 9×9, 18 ARC grids


@dataclass
class Trained:
    """A checkpoint, and what is known of the puzzles that it was trained on."""

    checkpoint: Path
    run: PretrainConfig
    device: torch.device
    data_path: Path  # of its dataset, which may be gone
    named_path: str | None  # the same if the user has named it
    metadata: PuzzleDatasetMetadata | None
    kind: Kind | None
    models: dict[int, ACTModel] = field(default_factory=dict)  # by the number of cells

    @classmethod
    def load(cls, name: str | Path, data_path: str | None, device: torch.device) -> "Trained":
        """By `locate`. The checkpoint's folder may describe its dataset, as one of the Hub or of pretrained/ does."""
        checkpoint = locate(name)
        run = load_config(str(checkpoint.parent / "all_config.yaml"))
        path = Path(data_path or run.data_path)
        described = description_in(checkpoint.parent) if data_path is None else None
        metadata, kind = described or dataset_at_hand(path)
        return cls(checkpoint, run, device, path, data_path, metadata, kind)

    def model_for(self, puzzle: Puzzle) -> ACTModel:
        """The model for puzzles of so many cells. Raises `UserError` if it was trained on puzzles of another kind."""
        cells = len(puzzle.inputs)
        if cells not in self.models:
            try:
                head = load_model_alone(self.checkpoint, self.run, cells, self.device, self.metadata)
            except UserError:
                if self.kind is not None and (type(self.kind), self.kind.seq_len) != (type(puzzle.kind), cells):
                    raise self.another_puzzle(f"{self.kind.title}s", puzzle) from None
                raise
            self.models[cells] = head.model
        return self.models[cells]

    def prepare(self, puzzle: Puzzle) -> Puzzle:
        """The puzzle with its identifier and with notes on what the user should know; checks that it fits."""
        model = self.model_for(puzzle)
        self.check_fit(puzzle, model)
        if puzzle.name is not None and model.puzzle_emb is not None:
            find_embedding(puzzle, identifiers_at_hand(self.data_path))
        return puzzle

    def check_fit(self, puzzle: Puzzle, model: ACTModel) -> None:
        """Refuse a puzzle of another kind than the model was trained on, as far as weights and dataset tell."""
        vocab_size, kind = model.data.vocab_size, self.kind
        if kind is not None and kind.vocab_size != vocab_size:
            kind = None  # another dataset lies there now
        known = kinds_with(vocab_size) if kind is None else f"{kind.title}s"
        another_kind = kind is not None and type(kind) is not type(puzzle.kind)
        if another_kind or puzzle.kind.vocab_size != vocab_size:
            raise self.another_puzzle(known, puzzle)
        if kind is not None and kind.seq_len != len(puzzle.inputs):
            puzzle.notes += (f"the model was trained on {known}: do not expect a good answer",)
        names = identifiers_at_hand(self.data_path) if puzzle.task is not None else []
        if names and model.puzzle_emb is not None and len(names) != model.data.num_puzzle_identifiers:
            raise UserError(
                f"{self.checkpoint} has {model.data.num_puzzle_identifiers} puzzle embeddings, "
                f"{self.data_path}/identifiers.json {len(names)} names; set data_path to the dataset that it was "
                f"trained on"
            )

    def another_puzzle(self, known: str, puzzle: Puzzle) -> UserError:
        return UserError(
            f"{self.checkpoint} was trained on {known}, but the puzzle is {described(puzzle)}; use a checkpoint that "
            f"was trained on such puzzles"
        )


class Solver:
    """What answers puzzles: one checkpoint or, without one, for each puzzle the model in pretrained/ that fits it."""

    def __init__(self, trained: Trained | None, device: torch.device):
        self._trained, self._device = trained, device
        self._models = pretrained_models() if trained is None else []  # read once: a list may hold many puzzles
        self._pretrained: dict[Path, Trained] = {}

    @classmethod
    def load(
        cls, checkpoint: str | Path | None = None, *, data_path: str | None = None, device: str = "auto"
    ) -> "Solver":
        """`checkpoint`: a file, a run folder (its best, else its last), `user/name` of the Hub; None: pretrained/.

        `data_path`: its dataset, if that has moved. `device`: auto, cuda, mps or cpu. Raises `UserError`.
        """
        chosen = select_device(device)
        if checkpoint is None:
            if data_path is not None:
                raise UserError(f"data_path={data_path} is the dataset of a checkpoint; {NAME_ONE}")
            return cls(None, chosen)
        return cls(Trained.load(checkpoint, data_path, chosen), chosen)

    def solve(
        self,
        puzzle: str | np.ndarray | Sequence[str | np.ndarray],
        *,
        max_steps: int | None = None,
        halt: str = "max",
    ) -> Solution | list[Solution]:
        """Answer a puzzle, or each of a list of puzzles, several in one forward pass.

        A puzzle is written as for solve.py: a text, or its cells as an array (rows, columns), 0 for a blank of a
        Sudoku. `max_steps`: reasoning steps, by default as in training. `halt`: "max" takes all of them, "q" stops
        where the model wants to. Raises `UserError` for what is no puzzle, or none for this model.
        """
        several = isinstance(puzzle, list | tuple)
        texts = list(puzzle) if several else [puzzle]
        sources = [f"puzzle {number}" for number in range(1, len(texts) + 1)] if several else ["puzzle"]
        puzzles = [self.read(text, source) for text, source in zip(texts, sources, strict=True)]
        found = self.answer(puzzles, max_steps, halt)
        return found if several else found[0]

    def solve_task(self, task: str, query: int = 1, *, max_steps: int | None = None, halt: str = "max") -> Solution:
        """Answer a test input of an ARC task: its id, or its JSON file (named as in the run's dataset)."""
        return self.answer([self.read_task(task, query)], max_steps, halt)[0]

    def read(self, puzzle: str | np.ndarray, source: str = "puzzle") -> Puzzle:
        """A puzzle as people write it, made ready for `answer`; `source` is what a message calls it."""
        if self._trained is None:
            return self.trained_on(found := read_for_pretrained(puzzle, source, self._models)).prepare(found)
        trained = self._trained
        try:
            return trained.prepare(read_typed(puzzle, source, trained.kind))
        except UserError as error:
            if trained.metadata is not None:
                raise
            raise UserError(
                f"{error} (no dataset at {trained.data_path}, which says what puzzles {trained.checkpoint} was trained "
                f"on: set data_path if it has moved)"
            ) from None

    def read_task(self, task: str, query: int = 1) -> Puzzle:
        """The same of a test input of an ARC task, whose embedding is found by its place in the dataset."""
        trained = self._trained
        if trained is None:
            raise no_model_of("ARC tasks", self._models)
        check_data(trained.checkpoint, trained.run, trained.named_path)
        return trained.prepare(read_query(task, query, trained.data_path, trained.kind))

    def trained_on(self, puzzle: Puzzle) -> Trained:
        """The checkpoint that answers this puzzle."""
        if self._trained is not None:
            return self._trained
        model = next(model for model in self._models if model.kind == puzzle.kind)
        if model.checkpoint not in self._pretrained:
            self._pretrained[model.checkpoint] = Trained.load(model.checkpoint, None, self._device)
        return self._pretrained[model.checkpoint]

    def answer(
        self,
        puzzles: Sequence[Puzzle],
        max_steps: int | None = None,
        halt: str = "max",
        after_step: Callable[[], object] = lambda: None,
    ) -> list[Solution]:
        """Answer puzzles of `read` and `read_task`, those of one shape together."""
        if halt not in HALTING:
            raise UserError(f"halt={halt!a:.50} is unknown; it is {' or '.join(HALTING)}")
        if max_steps is not None and not (isinstance(max_steps, int | np.integer) and 1 <= max_steps <= MAX_STEPS):
            raise UserError(f"max_steps={max_steps!a:.50} is no whole number from 1 to {MAX_STEPS:,}")
        shapes: dict[tuple[Path, int], list[int]] = {}
        for number, puzzle in enumerate(puzzles):
            shapes.setdefault((self.trained_on(puzzle).checkpoint, len(puzzle.inputs)), []).append(number)
        found: list[list[Answer]] = [[] for _ in puzzles]
        for numbers in shapes.values():
            model = self.trained_on(puzzles[numbers[0]]).model_for(puzzles[numbers[0]])
            rows = max(1, TOKENS // model.inner.positions)
            for first in range(0, len(numbers), rows):
                batch = numbers[first : first + rows]
                for answers in think([puzzles[number] for number in batch], model, max_steps, halt):
                    for row, answer in answers.items():
                        found[batch[row]].append(answer)
                    after_step()
        return [
            Solution(puzzle, steps, judge(puzzle, steps[-1].tokens))
            for puzzle, steps in zip(puzzles, found, strict=True)
        ]


def locate(name: str | Path) -> Path:
    """The checkpoint of this name: a file, or what a run folder or else a repository of the Hub stands for."""
    path = Path(name)
    words = re.fullmatch(r"([\w.-]+)/([\w.-]+)", str(name))
    if path.exists() or words is None or step_of(words[2]) is not None or Path(words[1]).exists():
        return find_checkpoint(path)
    from training.hub import download  # whose client takes a while to import

    try:
        return find_checkpoint(download(str(name)))
    except UserError as error:
        raise UserError(f"there is no checkpoint or run folder {name} here, and on the Hub: {error}") from None


def find_embedding(puzzle: Puzzle, names: list[str]) -> None:
    """Let the model know the puzzle by its name, if it was trained on one of that name."""
    if puzzle.name in names:
        puzzle.identifier = names.index(puzzle.name)
    elif len(names) > 1:
        puzzle.notes += (f"no puzzle called {puzzle.name!r:.60} was in the dataset: the blank embedding is used",)


def described(puzzle: Puzzle) -> str:
    return puzzle.title if puzzle.task is not None else with_article(puzzle.title)


def kinds_with(vocab_size: int) -> str:
    """The square puzzles with this many tokens, in words."""
    names = []
    for kind in all_kinds():
        titles = {board.title for board in boards_of(kind) if board.vocab_size == vocab_size}
        if titles:
            names.append(f"{titles.pop() if len(titles) == 1 else kind.name}s")
    return " or ".join(names) or f"puzzles of {vocab_size} tokens"


def boards_of(kind: type[Kind]) -> Iterator[Kind]:
    """Yield the kind's square boards of 2×2 up to 30×30, as far as they exist."""
    for side in range(2, 31):
        with suppress(ValueError):
            yield kind.of_cells(side * side)
