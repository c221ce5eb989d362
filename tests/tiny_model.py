"""The reference run's final model and its 4×4 Sudokus, in this process; and a plain loop over its steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig
from tests.runs import PIPELINE, TRAJECTORY
from training.checkpoints import load_weights
from training.config import arch_config

EXAMPLES, SEQ_LEN, VOCAB = 21, 16, 6


def open_test_split(path: Path = PIPELINE / "dataset", rank: int = 0, ranks: int = 1, **changes) -> PuzzleDataset:
    """Batches of 8 over all ranks, so that the last one is padded."""
    options = dict(seed=7, global_batch_size=8, test_set_mode=True, epochs_per_iter=1)
    return PuzzleDataset(
        PuzzleDatasetConfig(dataset_path=str(path), rank=rank, num_replicas=ranks, **options | changes), "test"
    )


def build_model(max_steps: int = 4, halting: bool = False) -> ACTLossHead:
    """With `halting`, a Q head for which the 21 examples stop after 1 to 6 steps."""
    arch = TRAJECTORY["config"]["arch"] | {"halt_max_steps": max_steps}
    head = arch_config(arch).build(batch_size=8, seq_len=SEQ_LEN, vocab_size=VOCAB, num_puzzle_identifiers=1)
    load_weights(head, PIPELINE / "final_checkpoint.pt")
    if halting:
        q_head = head.model.inner.q_head
        with torch.no_grad():
            q_head.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(75)))
            q_head.bias.copy_(torch.tensor([-15.4, 0.0]))
    return head.eval()


@torch.inference_mode()
def every_step(head: ACTLossHead) -> dict[str, np.ndarray]:
    """All examples as one batch: labels (n, S), and after each step logits (n, steps, S, V), q_halt and q_continue."""
    _, batch, _ = next(iter(open_test_split(global_batch_size=EXAMPLES)))
    carry, steps = head.initial_carry(batch), []
    for _ in range(head.model.config.halt_max_steps):
        carry, outputs = head.model(carry=carry, batch=batch)
        steps.append(outputs)
    stacked = {key: torch.stack([step[key] for step in steps], 1).numpy() for key in steps[0]}
    return stacked | {key: value.numpy() for key, value in batch.items()}


def in_two_sets(folder: Path, first: int = 13) -> Path:
    """The same test split, its first examples in the set `a`, the others in `b`."""
    source, split = PIPELINE / "dataset" / "test", folder / "test"
    split.mkdir(parents=True)
    shutil.copy(source.parent / "identifiers.json", folder)
    metadata = json.loads((source / "dataset.json").read_text()) | {"sets": ["a", "b"]}
    (split / "dataset.json").write_text(json.dumps(metadata))
    for name, here in (("a", slice(0, first)), ("b", slice(first, EXAMPLES))):
        for field in ("inputs", "labels", "puzzle_identifiers"):
            np.save(split / f"{name}__{field}.npy", np.load(source / f"all__{field}.npy")[here])
        for field in ("puzzle_indices", "group_indices"):
            np.save(split / f"{name}__{field}.npy", np.arange(here.stop - here.start + 1, dtype=np.int32))
    return folder
