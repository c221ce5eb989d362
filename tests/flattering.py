"""A run whose labels flatter its model: the reference run's end, which solves no puzzle by itself, and the true labels
replaced by what the model answers. So the tests know which puzzles it gets right.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.runs import PIPELINE, TRAJECTORY
from training.config import load_config

PUZZLES, RIGHT = 21, 12  # the labels of the last 9 differ from the answers in one cell


def flattering_run(folder: Path) -> Path:
    """Make the dataset `<folder>/data` and the run `<folder>/run`; -> its checkpoint."""
    run, data = folder / "run", folder / "data"
    run.mkdir()
    shutil.copytree(PIPELINE / "dataset", data)
    shutil.copy(PIPELINE / "final_checkpoint.pt", run / "step_60")
    (run / "all_config.yaml").write_text(yaml.safe_dump(TRAJECTORY["config"] | dict(data_path=str(data))))

    labels = own_steps(run / "step_60", split_inputs(data))[-1]["answers"].astype(np.uint8)
    labels[labels == 0] = 2  # PAD would be an ignored label; then the cell is wrong
    labels[RIGHT:, 3] = np.where(labels[RIGHT:, 3] == 2, 3, 2)
    np.save(data / "test/all__labels.npy", labels)
    return run / "step_60"


def split_inputs(data: Path) -> np.ndarray:
    return np.load(data / "test/all__inputs.npy")


def own_steps(checkpoint: Path, inputs: np.ndarray) -> list[dict[str, np.ndarray]]:
    """`answers`, `q_halt`, `q_continue`, `z_H` and `z_L` after each step, by the loop that training uses."""
    config = load_config(str(checkpoint.parent / "all_config.yaml"))
    head = config.arch.build(batch_size=len(inputs), seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    head.load_state_dict(torch.load(checkpoint, weights_only=True))
    head.eval()
    rows = torch.from_numpy(inputs.astype(np.int32))
    batch = {"inputs": rows, "labels": rows, "puzzle_identifiers": torch.zeros(len(rows), dtype=torch.int32)}
    carry, finished, steps = head.initial_carry(batch), False, []
    keys = ["logits", "q_halt_logits", "q_continue_logits"]
    while not finished:
        with torch.no_grad():
            carry, _, _, outputs, finished = head(carry=carry, batch=batch, return_keys=keys)
        steps.append(
            {
                "answers": outputs["logits"].argmax(-1).numpy(),
                "q_halt": outputs["q_halt_logits"].numpy(),
                "q_continue": outputs["q_continue_logits"].numpy(),
                "z_H": carry.inner_carry.z_H.numpy(),
                "z_L": carry.inner_carry.z_L.numpy(),
            }
        )
    return steps
