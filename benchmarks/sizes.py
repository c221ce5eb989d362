"""The sizes that are measured, and made-up data for them: random tokens (time does not depend on their values)."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.format import PuzzleDatasetMetadata, SplitWriter, write_identifiers
from models.act import tensors_of
from models.losses import ACTLossHead
from puzzle_dataset import Batch
from training.command_line import compose_run
from training.config import PretrainConfig, from_hydra

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("arch.hidden_size=128", "arch.num_heads=4", "arch.H_layers=2", "arch.L_layers=2", "arch.halt_max_steps=8")
TOY = ("arch.hidden_size=32", "arch.num_heads=2", "arch.H_layers=1", "arch.L_layers=1", "arch.halt_max_steps=4")


class Size(NamedTuple):
    experiment: str
    seq_len: int
    vocab_size: int
    puzzles: int  # identifiers, the blank included
    batches: tuple[int, ...]  # global batch sizes that are measured
    overrides: tuple[str, ...] = ()

    @property
    def metadata(self) -> PuzzleDatasetMetadata:
        known = dict(vocab_size=self.vocab_size, seq_len=self.seq_len, num_puzzle_identifiers=self.puzzles)
        made_up = dict(pad_id=0, ignore_label_id=0, blank_identifier_id=0, total_groups=1000, mean_puzzle_examples=1.0)
        return PuzzleDatasetMetadata(**known, **made_up, sets=["all"])


SIZES = {
    "sudoku": Size("sudoku_extreme_1k", 81, 11, 1, (96, 768)),
    "trm": Size("trm_sudoku_mlp", 81, 11, 1, (384,)),
    "arc": Size("arc_1", 900, 12, 876_406, (96,)),
    "maze": Size("maze_hard_1k", 900, 6, 1, (96,)),
    "small": Size("sudoku_extreme_1k", 81, 11, 1, (64,), SMALL),
    "toy": Size("sudoku_extreme_1k", 81, 11, 50, (8,), TOY),
}


def default_size(toy: bool, device: torch.device) -> str:
    return "toy" if toy else "sudoku" if device.type == "cuda" else "small"


def config_of(size: Size, batch: int, *overrides: str) -> PretrainConfig:
    """The experiment's config with this global batch size, and further `key=value` as pretrain.py reads them."""
    values = [f"+experiment={size.experiment}", f"global_batch_size={batch}", *size.overrides, *overrides]
    return from_hydra(compose_run(str(ROOT / "config"), values))


def build_head(size: Size, batch: int, device: torch.device, *overrides: str) -> ACTLossHead:
    return config_of(size, batch, *overrides).arch.build_for(size.metadata, batch_size=batch, device=device)


def forward_dtype(head: ACTLossHead) -> torch.dtype:
    """The dtype of the network's state, and so of its activations."""
    state = tensors_of(head.model.inner.initial_state(1))
    return next(tensor.dtype for tensor in state if tensor.is_floating_point())


def random_batches(size: Size, batch: int, device: torch.device, seed: int = 0) -> Iterator[Batch]:
    """Endless batches. Half of the rows share the identifiers of the other half, as examples of one ARC task do."""
    rng = np.random.default_rng(seed)

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(device)

    while True:
        inputs, labels = rng.integers(1, size.vocab_size, (2, batch, size.seq_len))
        ids = rng.integers(min(1, size.puzzles - 1), size.puzzles, -(-batch // 2)).repeat(2)[:batch]
        yield {"inputs": on_device(inputs), "labels": on_device(labels), "puzzle_identifiers": on_device(ids)}


def write_dataset(
    folder: Path, split: str, size: Size, groups: int, puzzles_a_group: int, examples_a_puzzle: int = 1
) -> None:
    """Write a dataset of random tokens; every puzzle has its own identifier if the size has identifiers."""
    rng = np.random.default_rng(0)
    writer = SplitWriter(folder, split, seq_len=size.seq_len)
    sizes = dict(puzzle_sizes=np.full(puzzles_a_group, examples_a_puzzle), group_sizes=np.array([puzzles_a_group]))
    for group in range(groups):
        shape = (2, puzzles_a_group * examples_a_puzzle, size.seq_len)
        inputs, labels = rng.integers(1, size.vocab_size, shape, dtype=np.uint8)
        ids = (group * puzzles_a_group + np.arange(puzzles_a_group)) % size.puzzles
        writer.append(inputs, labels, puzzle_identifiers=ids, **sizes)
    writer.finish(vocab_size=size.vocab_size, num_puzzle_identifiers=size.puzzles)
    write_identifiers(folder, [f"p{number}" for number in range(1, size.puzzles)])
