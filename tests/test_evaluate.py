"""evaluate.py on the reference run's checkpoint: python -m pytest tests/test_evaluate.py"""

import shutil

import pytest
import torch
import yaml

from errors import UserError
from tests.launch import ROOT, error_line, run
from tests.runs import PIPELINE, TRAJECTORY, load
from training.config import load_config

ARCH = TRAJECTORY["config"]["arch"]


@pytest.fixture
def checkpoint(tmp_path):
    """The original's final checkpoint in a run folder of its own, as it would come with a download."""
    config = yaml.safe_load((ROOT / "tests/reference/published_all_config.yaml").read_text())
    config["arch"] |= ARCH
    config |= dict(data_path=str(PIPELINE / "dataset"), global_batch_size=8, seed=7)
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(PIPELINE / "final_checkpoint.pt", tmp_path / "step_60")
    return tmp_path / "step_60"


def printed(output: str) -> dict[str, float]:
    rows = [line.split() for line in output.splitlines() if line.startswith("eval/")]
    return {key: float(value) for key, value in rows}


def check(output: str) -> None:
    expected = TRAJECTORY["eval"][-1]["all"]
    assert printed(output) == {f"eval/{key}": pytest.approx(value, abs=6e-5) for key, value in expected.items()}


def test_the_original_checkpoint_gives_the_original_metrics(checkpoint):
    done = run("evaluate.py", f"checkpoint={checkpoint}")
    check(done.stdout)
    saved = load(checkpoint.with_name("step_60_all_preds.0"))
    assert saved["logits"].shape == (24, 16, 6)  # 21 examples, padded to whole batches
    assert saved["q_halt_logits"].shape == (24,)
    kept = saved["labels"][:, 0] != -100
    accuracy = (saved["logits"].argmax(-1) == saved["labels"])[kept].float().mean()
    assert accuracy.item() == pytest.approx(TRAJECTORY["eval"][-1]["all"]["accuracy"], rel=1e-5)


@pytest.mark.slow
def test_ranks_and_compiled_prefix(checkpoint):
    """Two ranks, and the prefix that the original's compiled saves carry."""
    weights = {f"_orig_mod.{key}": value for key, value in load(checkpoint).items()}
    torch.save(weights, checkpoint)
    done = run("evaluate.py", f"checkpoint={checkpoint}", "save_outputs=[labels,q_halt_logits]", ranks=2)
    check(done.stdout)
    parts = [load(checkpoint.with_name(f"step_60_all_preds.{rank}")) for rank in range(2)]
    assert [set(part) for part in parts] == [{"labels", "q_halt_logits"}] * 2
    assert sum((part["labels"][:, 0] != -100).sum() for part in parts) == 21


def test_needs_only_the_split_it_evaluates(checkpoint, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset/test", data / "val")
    done = run("evaluate.py", f"checkpoint={checkpoint}", f"data_path={data}", "split=val", "save_outputs=[]")
    check(done.stdout)
    assert not list(tmp_path.glob("*all_preds*"))


def test_a_seeded_subset(checkpoint):
    arguments = ("evaluate.py", f"checkpoint={checkpoint}", "max_examples=5", "save_outputs=[inputs]")
    first = run(*arguments)
    assert "5 examples" in first.stdout
    inputs = load(checkpoint.with_name("step_60_all_preds.0"))["inputs"]
    assert run(*arguments).stdout == first.stdout
    assert torch.equal(load(checkpoint.with_name("step_60_all_preds.0"))["inputs"], inputs)


def test_mistakes_are_refused_in_one_line(checkpoint, tmp_path):
    def line(*args):
        return error_line("evaluate.py", *args)

    assert "did you mean 'max_examples'" in line(f"checkpoint={checkpoint}", "max_example=5")
    assert "not of the form key=value" in line("step_60")
    assert "step_61 does not exist" in line(f"checkpoint={checkpoint.with_name('step_61')}")
    assert "it has the splits test, train" in line(f"checkpoint={checkpoint}", "split=val")
    assert "save_outputs" in line(f"checkpoint={checkpoint}", "save_outputs=[nonsense]")
    assert "cannot write predictions" in line(f"checkpoint={checkpoint}", "output_dir=/proc/nope")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "not a readable checkpoint" in line(f"checkpoint={checkpoint}")


def test_a_table_of_another_dataset_names_the_right_one(checkpoint):
    weights = load(checkpoint)
    weights["model.inner.puzzle_emb.weights"] = torch.zeros(961, 32)
    torch.save(weights, checkpoint)
    message = error_line("evaluate.py", f"checkpoint={checkpoint}")
    assert "961 × 32" in message
    assert "need 1 × 32" in message
    assert str(PIPELINE / "dataset") in message


@pytest.mark.parametrize("content", ["a: [1", "- 1", ""])
def test_a_config_that_is_none_is_named(checkpoint, content):
    path = checkpoint.with_name("all_config.yaml")
    path.write_text(content)
    with pytest.raises(UserError, match=r"all_config\.yaml is not the config of a run"):
        load_config(str(path))


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    torch.save({"model.inner.H_init": Trap()}, checkpoint)
    assert "not a readable checkpoint" in error_line("evaluate.py", f"checkpoint={checkpoint}")
    assert not (tmp_path / "trapped").exists()
