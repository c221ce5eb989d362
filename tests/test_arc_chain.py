"""ARC from raw tasks to a submission, each command a process: python -m pytest tests/test_arc_chain.py"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.arc_oracle import oracle_augment, oracle_symmetry, write_tasks
from tests.arc_predictions import TASKS, oracle_ranking, raw_tasks
from tests.warm import run

NUM_AUG = 3
MODEL = dict(hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=1, L_cycles=1, halt_max_steps=2)


def oracle_grid(tokens: list[int], tid: int, digits: str) -> list[list[int]]:
    """The largest rectangle of colours, by trying all; its augmentation undone."""
    rows = [[token - 2 for token in tokens[30 * r : 30 * r + 30]] for r in range(30)]
    widths = [min(next((c for c in range(30) if not 0 <= row[c] <= 9), 30) for row in rows[: r + 1]) for r in range(30)]
    area, negative_height = max(((r + 1) * width, -(r + 1)) for r, width in enumerate(widths))
    if not area:
        return []
    height = -negative_height
    grid = oracle_symmetry([row[: area // height] for row in rows[:height]], (0, 3, 2, 1, 4, 5, 6, 7)[tid])
    grid = [[digits.index(str(colour)) for colour in row] for row in grid]
    assert oracle_augment(grid, tid, digits) == [row[: area // height] for row in rows[:height]]
    return grid


def oracle_ballots(dataset: Path, predictions: Path, ranks: int) -> dict[tuple[str, int], list]:
    """(task, test input) -> (answer, q_halt) in the order of the ranks' files."""
    names = json.loads((dataset / "identifiers.json").read_text())
    ids, starts = (np.load(dataset / f"test/all__puzzle_{field}.npy") for field in ("identifiers", "indices"))
    ballots: dict[tuple[str, int], list] = {}
    for rank in range(ranks):
        fields = [np.load(predictions / f"{name}.{rank}.npy") for name in ("examples", "answers", "q_halt_logits")]
        assert len(fields[0])
        for example, answer, q_halt in zip(*(field.tolist() for field in fields), strict=True):
            puzzle = int((starts <= example).sum()) - 1
            task, tid, digits = re.fullmatch(r"(.+?)(?:_t(\d)_(\d{10}))?", names[ids[puzzle]]).groups()
            grid = oracle_grid(answer, int(tid or 0), digits or "0123456789")
            ballots.setdefault((task, example - int(starts[puzzle])), []).append((grid, q_halt))
    return ballots


@pytest.mark.apart
def test_build_train_evaluate_on_two_ranks_vote(tmp_path):
    tasks, data, out = tmp_path / "tasks", tmp_path / "data", tmp_path / "run"
    write_tasks(tasks / "evaluation", raw_tasks())
    run("dataset/build_arc_dataset.py", "--dataset-dirs", tasks, "--output-dir", data, "--num-aug", NUM_AUG)
    settings = dict(global_batch_size=4, epochs=2, lr=1e-2, lr_warmup_steps=1, device="cpu", eval_interval="null")
    settings |= {f"arch.{key}": value for key, value in MODEL.items()}
    settings |= dict(data_path=data, checkpoint_path=out)
    run("pretrain.py", *(f"{key}={value}" for key, value in settings.items()))
    (checkpoint,) = (path for path in out.glob("step_*") if path.suffix == "" and path.is_file())
    run("evaluate.py", f"checkpoint={checkpoint}", ranks=2)
    done = run(
        "-m", "evaluators.arc", f"dataset={data}", f"predictions={checkpoint}", f"submission={tmp_path / 'out.json'}",
        "json=true", "k=1,2,5",
    )  # fmt: skip

    result, submission = json.loads(done.stdout), json.loads((tmp_path / "out.json").read_text())
    ballots = oracle_ballots(data, checkpoint.with_name(f"{checkpoint.name}_preds"), ranks=2)
    assert sum(map(len, ballots.values())) == (1 + NUM_AUG) * 6
    assert result["num_tasks"] == len(submission) == len(TASKS)
    for k in (1, 2, 5):
        solved = [
            [
                pair["output"] in [answer for answer, *_ in oracle_ranking(ballots[task, which])[:k]]
                for which, pair in enumerate(raw_tasks()[task]["test"])
            ]
            for task in TASKS
        ]
        assert result["task"][str(k)] == pytest.approx(np.mean([all(inputs) for inputs in solved]))
        assert result["fractional"][str(k)] == pytest.approx(np.mean([np.mean(inputs) for inputs in solved]))
    for (task, which), votes in ballots.items():
        attempts = [answer or [[0]] for answer, *_ in oracle_ranking(votes)[:2]]
        assert submission[task][which] == {"attempt_1": attempts[0], "attempt_2": attempts[-1]}
    assert any(len(answer) > 1 for votes in ballots.values() for answer, _ in votes)  # not only empty grids
