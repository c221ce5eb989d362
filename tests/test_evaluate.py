"""evaluate.py on the reference run's checkpoint: python -m pytest tests/test_evaluate.py"""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml

from dataset.format import content_digest
from errors import UserError
from evaluate import EvalConfig, evaluate_checkpoint
from tests import warm
from tests.launch import ROOT, error_line, run
from tests.runs import PIPELINE, TRAJECTORY, load, of_the_original, printed_metrics
from tests.tiny_model import in_two_sets, open_test_split
from tests.waiting import wait_for
from training.checkpoints import check_data
from training.config import SAVABLE_OUTPUTS, load_config
from training.distributed import Ranks
from training.evaluation import evaluate_split, fitting
from training.options import from_cli
from training.predictions import read_predictions, writing_predictions
from training.reasoning import Reasoner

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


def in_this_process(*args) -> dict[str, float]:
    return evaluate_checkpoint(from_cli(EvalConfig, list(args), ""), Ranks(0, 1, 0), torch.device("cpu"))


def printed(output: str) -> dict[str, float]:
    return {key: float(value) for key, value in printed_metrics(output).items()}


def check(output: str) -> None:
    expected = TRAJECTORY["eval"][-1]["all"]
    assert of_the_original(printed(output)) == {
        f"eval/{key}": pytest.approx(value, abs=6e-5) for key, value in expected.items()
    }


def test_the_original_checkpoint_gives_the_original_metrics(checkpoint):
    """And leaves compact predictions; the formats themselves are in test_predictions.py."""
    done = run("evaluate.py", f"checkpoint={checkpoint}")
    check(done.stdout)
    assert "21 examples, halt=max, max_steps=4" in done.stdout
    assert re.search(r"^puzzles/s +[1-9][\d.]*$", done.stdout, re.MULTILINE)
    assert f"predictions: {checkpoint}_preds\n" in done.stdout
    assert {path.name for path in checkpoint.parent.iterdir()} == {"all_config.yaml", "step_60", "step_60_preds"}
    (rows,) = read_predictions(checkpoint, PIPELINE / "dataset")
    assert (rows.answers == rows.labels).mean() == pytest.approx(TRAJECTORY["eval"][-1]["all"]["accuracy"], rel=1e-5)


def test_a_split_without_answers_has_no_score(checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset", data)
    labels = data / "test/all__labels.npy"
    np.save(labels, np.zeros_like(np.load(labels)))
    in_this_process(f"checkpoint={checkpoint}", f"data_path={data}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "no example has an answer: nothing is scored" and lines[2].startswith("puzzles/s")
    (rows,) = read_predictions(checkpoint, data)
    assert len(rows.answers) == 21 and (rows.labels == -100).all()


def test_the_original_format(checkpoint, capsys):
    stale = checkpoint.with_name("step_60_all_preds.1")
    torch.save({}, stale)  # of an evaluation by more ranks
    in_this_process(f"checkpoint={checkpoint}", "save_format=torch")
    output = capsys.readouterr().out
    check(output)
    assert f"predictions: {checkpoint}_all_preds.*\n" in output
    saved = load(checkpoint.with_name("step_60_all_preds.0"))
    assert set(saved) == set(SAVABLE_OUTPUTS)
    assert saved["logits"].shape == (24, 16, 6)  # 21 examples, padded to whole batches
    assert saved["q_halt_logits"].shape == (24,)
    kept = saved["labels"][:, 0] != -100
    accuracy = (saved["logits"].argmax(-1) == saved["labels"])[kept].float().mean()
    assert accuracy.item() == pytest.approx(TRAJECTORY["eval"][-1]["all"]["accuracy"], rel=1e-5)
    assert not stale.exists()


@pytest.mark.apart
def test_ranks_and_compiled_prefix(checkpoint):
    """Two ranks, and the prefix that the original's compiled saves carry."""
    weights = {f"_orig_mod.{key}": value for key, value in load(checkpoint).items()}
    torch.save(weights, checkpoint)
    done = run("evaluate.py", f"checkpoint={checkpoint}", "save_outputs=[labels,q_halt_logits]", ranks=2)
    check(done.stdout)
    parts = [load(checkpoint.with_name(f"step_60_all_preds.{rank}")) for rank in range(2)]
    assert [set(part) for part in parts] == [{"labels", "q_halt_logits"}] * 2
    assert sum((part["labels"][:, 0] != -100).sum() for part in parts) == 21


@pytest.mark.apart
def test_two_ranks_write_one_folder(checkpoint, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = [f"checkpoint={checkpoint}", "halt=q", "max_steps=6", "save_logits=true", "save_steps=true"]
    metrics = in_this_process(*options, f"output_dir={one}")
    table = warm.run("evaluate.py", *options, f"output_dir={two}", ranks=2).stdout
    assert printed(table) == {key: pytest.approx(value, abs=1e-4) for key, value in metrics.items()}
    assert [path.name for path in two.iterdir()] == ["step_60_preds"]
    manifest = json.loads((two / "step_60_preds/manifest.json").read_text())
    assert (manifest["world_size"], manifest["halt"], manifest["max_steps"]) == (2, "q", 6)
    for field in manifest["fields"]:
        parts = [np.load(two / f"step_60_preds/{field}.{rank}.npy") for rank in range(2)]
        order = np.argsort(np.concatenate([np.load(two / f"step_60_preds/examples.{rank}.npy") for rank in range(2)]))
        whole = np.load(one / f"step_60_preds/{field}.0.npy")
        np.testing.assert_allclose(np.concatenate(parts)[order], whole, rtol=0, atol=2e-5)
    assert np.load(one / "step_60_preds/answers_by_step.0.npy").shape == (21, 6, 16)
    assert np.load(one / "step_60_preds/logits.0.npy").shape == (21, 16, 6)


def test_needs_only_the_split_it_evaluates(checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset/test", data / "val")
    in_this_process(f"checkpoint={checkpoint}", f"data_path={data}", "split=val", "save_format=none")
    output = capsys.readouterr().out
    check(output)
    assert "predictions:" not in output
    assert not list(tmp_path.glob("*preds*"))


def test_a_seeded_subset(checkpoint, capsys):
    arguments = [f"checkpoint={checkpoint}", "max_examples=5", "save_outputs=[inputs]"]
    first = in_this_process(*arguments)
    assert "5 examples" in capsys.readouterr().out
    inputs = load(checkpoint.with_name("step_60_all_preds.0"))["inputs"]
    assert in_this_process(*arguments) == first
    assert torch.equal(load(checkpoint.with_name("step_60_all_preds.0"))["inputs"], inputs)


def refusal(*args) -> str:
    with pytest.raises(UserError) as refused:
        in_this_process(*args)
    return str(refused.value)


def test_mistakes_are_refused_in_one_line(checkpoint, tmp_path):
    this = f"checkpoint={checkpoint}"
    assert "did you mean 'max_examples'" in error_line("evaluate.py", this, "max_example=5", run=warm.run)
    assert "not of the form key=value" in refusal("step_60")
    assert "step_61 is missing; name a step_<n> file" in refusal(f"{this[:-2]}61")
    assert "it has the splits test, train" in refusal(this, "split=val")
    assert "save_outputs" in refusal(this, "save_outputs=[nonsense]")
    nowhere = refusal(f"{this[:-2]}61", "output_dir=/proc/nope")  # seen before the checkpoint is missed
    assert nowhere.startswith("cannot write predictions: ") and "set output_dir, or save_format=none" in nowhere
    assert "max_steps: Input should be greater than or equal to 1" in refusal(this, "max_steps=0")
    assert "halt: Input should be 'max' or 'q'" in refusal(this, "halt=soon")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "not a readable checkpoint" in refusal(this)
    assert not list(tmp_path.glob("*preds*"))


@pytest.mark.parametrize("save_format", ["compact", "torch"])
def test_two_evaluations_do_not_write_to_the_same_place(checkpoint, save_format):
    arguments = [f"checkpoint={checkpoint}", f"save_format={save_format}"]
    with writing_predictions(checkpoint, Ranks(0, 1, 0)):
        line = refusal(*arguments)
        assert line.startswith(f"another process is writing predictions of {checkpoint}: process {os.getpid()} on ")
        in_this_process(f"checkpoint={checkpoint}", "save_format=none")
        in_this_process(*arguments, f"output_dir={checkpoint.parent / 'other'}")
    in_this_process(*arguments)
    assert not list(checkpoint.parent.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_is_interrupted_leaves_nothing_behind(checkpoint, tmp_path, number):
    """After SIGKILL until the next start."""
    arguments = ["evaluate.py", f"checkpoint={checkpoint}", "max_steps=65535", f"output_dir={tmp_path / 'out'}"]
    evaluation = warm.Started(*arguments)
    begun = tmp_path / "out"
    wait_for(lambda: evaluation.poll() is not None or list(begun.glob(".*.tmp/answers.0.npy")), "an answer's file")
    evaluation.send_signal(number)
    evaluation.communicate()
    assert evaluation.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert (tmp_path / "out").exists() == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        assert list((tmp_path / "out").glob(".*.tmp"))
        in_this_process(*arguments[1:], "max_steps=1")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["step_60_preds"]


@pytest.mark.parametrize("wrong", [["split=val"], ["data_path=nowhere"], ["checkpoint=nowhere/step_1"], ["damaged"]])
def test_a_refused_evaluation_leaves_nothing(checkpoint, tmp_path, wrong):
    if wrong == ["damaged"]:
        checkpoint.write_bytes(b"x")
        wrong = []
    before = sorted(tmp_path.rglob("*"))
    refusal(f"checkpoint={checkpoint}", f"output_dir={tmp_path / 'a/b'}", *wrong)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_batch_holds_no_more_than_the_split(checkpoint, monkeypatch):
    sizes = []

    def recording(head, dataset, *args, **options):
        sizes.append(dataset.local_batch_size)
        return evaluate_split(head, dataset, *args, **options)

    monkeypatch.setattr("evaluate.evaluate_split", recording)
    arguments = [f"checkpoint={checkpoint}", "save_format=none"]
    whole = in_this_process(*arguments, "global_batch_size=21")
    assert in_this_process(*arguments, "global_batch_size=1000000000") == whole
    in_this_process(*arguments, "global_batch_size=20000", "max_examples=5")
    in_this_process(*arguments, "global_batch_size=4", "max_examples=5")
    assert sizes == [21, 21, 5, 4]


def test_ranks_share_what_the_split_holds(tmp_path):
    assert fitting(20_000, open_test_split(ranks=2), Ranks(0, 2, 0)) == 22
    assert fitting(6, open_test_split(ranks=2), Ranks(1, 2, 0)) == 6
    assert fitting(20_000, open_test_split(in_two_sets(tmp_path), ranks=2), Ranks(0, 2, 0)) == 14  # 13 and 8


def test_predictions_that_are_no_numbers_are_not_read_as_answers(checkpoint, monkeypatch, caplog):
    """A row whose logits are NaN looks like an answer of zeros, and its q may be anything."""
    run = Reasoner.run

    def broken(self, batch, real, by_step=False):
        done = run(self, batch, real, by_step)
        done.outputs["logits"][2, 5, 1] = torch.nan
        return done

    monkeypatch.setattr(Reasoner, "run", broken)
    in_this_process(f"checkpoint={checkpoint}")
    (rows,) = read_predictions(checkpoint, PIPELINE / "dataset")
    assert len(rows.answers) == 18  # 3 batches
    assert "passing over 3 of 21 predictions" in caplog.text


def test_a_dataset_that_was_built_anew_must_be_named(checkpoint, tmp_path, monkeypatch):
    """For evaluate, and by the same function for figures, voting and solve."""
    data = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset", data)
    run = load_config(str(checkpoint.with_name("all_config.yaml"))).model_copy(update={"data_path": str(data)})
    trained = content_digest(data / "train")
    monkeypatch.setattr("training.checkpoints.trained_on", lambda path: trained)
    check_data(checkpoint, run, None)
    inputs = np.load(data / "train/all__inputs.npy")
    np.save(data / "train/all__inputs.npy", inputs[::-1])
    with pytest.raises(UserError, match="it was built anew; give data_path=… to evaluate") as refused:
        check_data(checkpoint, run, None)
    assert f"{data} of content {trained}, which is {content_digest(data / 'train')} now" in str(refused.value)
    check_data(checkpoint, run, str(data))
    shutil.rmtree(data / "train")
    check_data(checkpoint, run, None)
    monkeypatch.setattr("training.checkpoints.trained_on", lambda path: None)
    check_data(checkpoint, run, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["save_format=compact", "save_outputs=[logits]"], "save_outputs chooses what save_format=torch saves"),
        (["save_format=torch", "save_logits=true"], "need save_format=compact"),
        (["save_outputs=[labels]", "save_steps=true"], "need save_format=compact"),
        (["halt=q", "compile=on"], "compile=on needs halt=max"),
        (["save_outputs=[]"], "to save nothing give save_format=none"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    assert message in refusal("checkpoint=step_60", *options)


@pytest.mark.parametrize(
    ("options", "save_format"),
    [
        ([], "compact"),
        (["save_outputs=[logits]"], "torch"),
        (["save_format=torch"], "torch"),
        (["save_format=none"], "none"),
    ],
)
def test_what_is_saved(options, save_format):
    assert from_cli(EvalConfig, ["checkpoint=step_60", *options], "").save_format == save_format


@pytest.mark.parametrize(("halt", "mode"), [("max", "auto"), ("q", "off")])
def test_a_batch_that_shrinks_is_not_compiled(checkpoint, monkeypatch, halt, mode):
    """On CUDA, where compile=auto compiles, each of its sizes would be."""
    asked = []
    monkeypatch.setattr("evaluate.compile_blocks", lambda model, mode, *rest: asked.append(mode))
    in_this_process(f"checkpoint={checkpoint}", f"halt={halt}", "save_format=none", "max_examples=1")
    assert asked == [mode]


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_words_that_yaml_takes_for_booleans(word):
    assert from_cli(EvalConfig, ["checkpoint=step_60", f"compile={word}"], "").compile == word


def test_a_table_of_another_dataset_names_the_right_one(checkpoint):
    weights = load(checkpoint)
    weights["model.inner.puzzle_emb.weights"] = torch.zeros(961, 32)
    torch.save(weights, checkpoint)
    message = refusal(f"checkpoint={checkpoint}")
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
    assert "not a readable checkpoint" in refusal(f"checkpoint={checkpoint}")
    assert not (tmp_path / "trapped").exists()


def test_a_disk_that_is_full_leaves_earlier_dictionaries(checkpoint, monkeypatch):
    options = (f"checkpoint={checkpoint}", "save_format=torch", "save_outputs=[inputs]")
    in_this_process(*options)
    before = {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in refusal(*options)
    assert {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()} == before
