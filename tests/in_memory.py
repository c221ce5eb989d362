"""Configs, models and batches of random tokens that need no dataset on disk."""

from collections.abc import Iterator

import torch

from dataset.format import PuzzleDatasetMetadata
from models.losses import ACTLossHead
from puzzle_dataset import Batch
from tests.launch import ROOT
from training.command_line import compose_run
from training.config import PretrainConfig, from_hydra

SEQ_LEN, VOCAB, PUZZLES = 81, 11, 50
NARROW = ("arch.hidden_size=32", "arch.num_heads=2", "arch.halt_max_steps=4", "global_batch_size=8")
TINY = (*NARROW, "arch.H_layers=1", "arch.L_layers=1")
# Experiments with every architecture and variant of it, at a toy size
TINY_TRM = (*NARROW, "arch.L_layers=1", "arch.H_cycles=2", "arch.L_cycles=1")
FAMILY = {
    "sudoku_extreme_1k": TINY,
    "trm_sudoku": (*TINY_TRM, "arch.puzzle_emb_len=3"),
    "trm_sudoku_mlp": (*TINY_TRM, "arch.puzzle_emb_len=2"),
    "eqr_sudoku": TINY_TRM,
    "urm_sudoku": (*NARROW, "arch.num_layers=1", "arch.H_cycles=2", "arch.L_cycles=1"),
    "transformer_sudoku": (*NARROW, "arch.num_layers=2"),
    "direct_sudoku": (*NARROW, "arch.num_layers=2", "arch.halt_max_steps=1"),
}
METADATA = PuzzleDatasetMetadata(
    pad_id=0, ignore_label_id=0, blank_identifier_id=0, vocab_size=VOCAB, seq_len=SEQ_LEN,
    num_puzzle_identifiers=PUZZLES, total_groups=1000, mean_puzzle_examples=1.0, sets=["all"],
)  # fmt: skip


def composed(*overrides: str, experiment: str = "sudoku_extreme_1k") -> PretrainConfig:
    """The config of an experiment, as pretrain.py would have it with these `key=value`."""
    return from_hydra(compose_run(str(ROOT / "config"), [f"+experiment={experiment}", *overrides]))


def build_head(config: PretrainConfig, device: str = "cpu", **changes: int) -> ACTLossHead:
    """`changes` are those of the data's shape."""
    metadata = METADATA.model_copy(update=changes)
    return config.arch.build_for(metadata, batch_size=config.global_batch_size, device=torch.device(device))


def random_batches(batch: int) -> Iterator[Batch]:
    """Without end. Half of the rows share the identifiers of the other half, as examples of one ARC task do."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    while True:
        ids = draw(1, PUZZLES, batch // 2).repeat_interleave(2)
        inputs, labels = draw(1, VOCAB, 2, batch, SEQ_LEN)
        yield {"inputs": inputs, "labels": labels, "puzzle_identifiers": ids}
