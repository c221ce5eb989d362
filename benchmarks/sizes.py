"""The sizes that are measured, and made-up data for them: random tokens (time does not depend on what they say)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.build import ROOT
from dataset.format import PuzzleDatasetMetadata, SplitWriter, write_identifiers
from models.losses import ACTLossHead
from puzzle_dataset import Batch
from training.config import PretrainConfig, from_hydra

SMALL = ("arch.hidden_size=128", "arch.num_heads=4", "arch.H_layers=2", "arch.L_layers=2", "arch.halt_max_steps=8")
TOY = ("arch.hidden_size=32", "arch.num_heads=2", "arch.H_layers=1", "arch.L_layers=1", "arch.halt_max_steps=4")


@dataclass(frozen=True)
class Size:
    experiment: str
    seq_len: int
    vocab_size: int
    puzzles: int  # identifiers, the blank included
    batches: tuple[int, ...]  # global batch sizes that are measured
    overrides: tuple[str, ...] = ()


SIZES = {
    "sudoku": Size("sudoku_extreme_1k", 81, 11, 1, (96, 768)),
    "arc": Size("arc_1", 900, 12, 876_406, (96,)),
    "maze": Size("maze_hard_1k", 900, 6, 1, (96,)),
    "small": Size("sudoku_extreme_1k", 81, 11, 1, (64,), SMALL),
    "toy": Size("sudoku_extreme_1k", 81, 11, 50, (8,), TOY),
}


def config_of(size: Size, batch: int, *overrides: str) -> PretrainConfig:
    values = [f"+experiment={size.experiment}", f"global_batch_size={batch}", *size.overrides, *overrides]
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        return from_hydra(compose("cfg_pretrain", overrides=values))


def metadata_of(size: Size) -> PuzzleDatasetMetadata:
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=size.vocab_size,
        seq_len=size.seq_len,
        num_puzzle_identifiers=size.puzzles,
        total_groups=1000,
        mean_puzzle_examples=1.0,
        sets=["all"],
    )


def build_head(size: Size, batch: int) -> ACTLossHead:
    """On the current default device."""
    return config_of(size, batch).arch.build(
        batch_size=batch,
        seq_len=size.seq_len,
        vocab_size=size.vocab_size,
        num_puzzle_identifiers=size.puzzles,
    )


def random_batches(size: Size, batch: int, device: torch.device, seed: int = 0) -> Iterator[Batch]:
    """Without end. Half of the rows share the identifiers of the other half, as examples of one ARC task do."""
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
    """A dataset of random tokens, every puzzle with an identifier of its own where the size has identifiers."""
    rng = np.random.default_rng(0)
    writer = SplitWriter(folder, split, seq_len=size.seq_len)
    for group in range(groups):
        examples = puzzles_a_group * examples_a_puzzle
        inputs, labels = rng.integers(1, size.vocab_size, (2, examples, size.seq_len), dtype=np.uint8)
        ids = (group * puzzles_a_group + np.arange(puzzles_a_group)) % size.puzzles
        sizes = np.full(puzzles_a_group, examples_a_puzzle)
        writer.append(
            inputs, labels, puzzle_identifiers=ids, puzzle_sizes=sizes, group_sizes=np.array([puzzles_a_group])
        )
    writer.finish(vocab_size=size.vocab_size, num_puzzle_identifiers=size.puzzles)
    write_identifiers(folder, [f"p{number}" for number in range(1, size.puzzles)])
