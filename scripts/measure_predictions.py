"""Time and memory of saving and reading predictions: python -m scripts.measure_predictions [--examples 419000]

Makes a synthetic dataset as large as the test split of ARC-AGI-1 with 1,000 augmentations (419,000 sequences of 900
tokens) in a temporary folder, evaluates a stand-in for a model that answers at random (`evaluate_split` with a
`PredictionWriter`, as in evaluate.py), and reads everything back, each in a process of its own. Peak memory includes
pages of the mapped dataset. Cost: about 12 minutes on 2 busy CPU cores, and 1.2 GB of temporary disk.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.format import SplitWriter, write_identifiers
from errors import UserError, one_line_errors
from models.act import ACTConfig, ACTModel, Data, DataShape, InnerNetwork, QValues
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset
from scripts.measure import measure
from training.distributed import Ranks
from training.evaluation import evaluate_split
from training.predictions import PredictionWriter, read_predictions

VOCAB, STEPS, BATCH = 12, 2, 768


class RandomAnswers(InnerNetwork):
    """Takes steps like a network, but answers at random."""

    def __init__(self, config: ACTConfig, data: DataShape):
        super().__init__(config, data)
        self.draws = True

    def initial_state(self, batch_size: int) -> None:
        return None

    def forward(self, state: None, data: Data) -> tuple[None, Tensor, QValues]:
        logits = torch.rand(*data["inputs"].shape, VOCAB)
        return None, logits, tuple(torch.randn(2, len(logits)))


class RandomModel(ACTModel):
    Config, Inner = ACTConfig, RandomAnswers


def build(folder: Path, examples: int, seq_len: int) -> None:
    """Write a dataset of random tokens, with one puzzle per example."""
    rng = np.random.default_rng(0)
    writer = SplitWriter(folder, "test", seq_len=seq_len)
    for start in range(0, examples, 4096):
        n = min(4096, examples - start)
        inputs, labels = rng.integers(1, VOCAB, (2, n, seq_len), dtype=np.uint8)
        ones = np.ones(n, np.int64)
        ids = np.arange(start, start + n) + 1
        writer.append(inputs, labels, puzzle_identifiers=ids, puzzle_sizes=ones, group_sizes=ones)
    writer.finish(vocab_size=VOCAB, num_puzzle_identifiers=examples + 1)
    write_identifiers(folder, [f"p{i}" for i in range(examples)])


def save(folder: Path) -> None:
    dataset, ranks = PuzzleDataset.alone(folder, "test", BATCH), Ranks(0, 1, 0)
    shape = dict(batch_size=BATCH, seq_len=dataset.metadata.seq_len, vocab_size=VOCAB, num_puzzle_identifiers=1)
    model = RandomModel(shape | dict(halt_max_steps=STEPS, halt_exploration_prob=0.0))
    head = ACTLossHead(model, "softmax_cross_entropy")
    with PredictionWriter(folder / "step_1", dataset, ranks, checkpoint="", halt="max", max_steps=STEPS) as writer:
        evaluate_split(head, dataset, ranks, torch.device("cpu"), [], writer=writer, leave_bar=True)


def read(folder: Path) -> None:
    right = sum(int((part.answers == part.labels).sum()) for part in read_predictions(folder / "step_1", folder))
    print(f"{right} cells are right")


STAGES = {"save": save, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=419_000)
    parser.add_argument("--seq-len", type=int, default=900)
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)  # what `measure` runs
    args = parser.parse_args()
    with one_line_errors():
        if args.stage:
            STAGES[args.stage[0]](Path(args.stage[1]))
            return
        if args.examples < 1 or args.seq_len < 1:
            raise UserError("--examples and --seq-len must be 1 or more")
        measure_all(args.examples, args.seq_len)


def measure_all(examples: int, seq_len: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch), examples, seq_len)
        results = {stage: measure("-m", "scripts.measure_predictions", "--stage", stage, scratch) for stage in STAGES}
        disk = sum(path.stat().st_size for path in Path(scratch, "step_1_preds").iterdir()) / 2**20
    print(f"\n{examples} × {seq_len}: {disk:.0f} MB of predictions on disk\n")
    print("| predictions | seconds | peak memory, MB |\n| --- | --- | --- |")
    for stage, result in results.items():
        print(f"| {stage} | {result['seconds']} | {result['peak_mb']} |")


if __name__ == "__main__":
    main()
