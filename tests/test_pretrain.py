"""Whole runs through the command line: python -m pytest tests/test_pretrain.py"""

import json
import re
import time

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from dataset.format import SplitWriter, write_identifiers
from pretrain import main
from tests import warm
from tests.in_memory import composed
from tests.launch import ROOT, error_line, run
from tests.runs import (
    PIPELINE,
    TRAJECTORY,
    assert_lines_close,
    lines_with,
    load,
    of_the_original,
    pretrain,
    read_metrics,
    reference_overrides,
    refusal,
)
from training.config import from_hydra, load_config
from training.metrics import eval_metrics, progress_bar
from training.run_folder import name_run
from training.step import train_step


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reference run"  # a blank in the name, as in default run names
    return folder, pretrain(folder)


def test_the_reference_run_is_reproduced(reference_run):
    folder, lines = reference_run
    assert_lines_close(lines_with(lines, "train/"), TRAJECTORY["train"], rtol=1e-4)
    expected = [
        {"step": e["step"]} | {f"eval/{key}": value for key, value in e["all"].items()} for e in TRAJECTORY["eval"]
    ]
    evaluations = [of_the_original(line) for line in lines_with(lines, "eval/")]
    assert_lines_close(evaluations, expected, rtol=1e-4)
    final, reference = load(folder / "step_60"), load(PIPELINE / "final_checkpoint.pt")
    assert final.keys() == reference.keys()
    for key, value in reference.items():
        torch.testing.assert_close(final[key], value, rtol=0, atol=1e-5)


def test_the_run_folder_tells_what_was_run(reference_run):
    folder, _ = reference_run
    config = yaml.safe_load((folder / "all_config.yaml").read_text())
    assert config["arch"]["H_layers"] == 1
    assert config["seed"] == 7
    for source in ("models/hrm/hrm_act_v1.py", "models/losses.py"):
        assert (folder / source.split("/")[-1]).read_text() == (ROOT / source).read_text()
    assert {p.name for p in folder.glob("step_*")} == {"step_20", "step_40", "step_60"}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    changes = {"load_checkpoint": None, "arch.halt_exploration_prob": 0.5, "epochs": 4}
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        pretrain(folder, **changes)
    assert (folders[0] / "metrics.jsonl").read_bytes() == (folders[1] / "metrics.jsonl").read_bytes()
    first, second = (load(folder / "step_20") for folder in folders)
    assert all(torch.equal(first[key], second[key]) for key in first)
    pretrain(tmp_path / "c", **changes | {"seed": 8})
    assert (tmp_path / "c/metrics.jsonl").read_bytes() != (folders[0] / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    """24 groups of 3 puzzles of 1..4 examples, each puzzle with an identifier of its own."""
    path = tmp_path_factory.mktemp("data") / "puzzles"
    path.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        sizes = rng.integers(1, 5, 72)
        tokens = rng.integers(1, 6, (sizes.sum(), 16))
        writer = SplitWriter(path, split, seq_len=16)
        writer.append(
            tokens,
            np.sort(tokens),
            puzzle_identifiers=np.arange(72) + 1,
            puzzle_sizes=sizes,
            group_sizes=np.full(24, 3),
        )
        writer.finish(vocab_size=6, num_puzzle_identifiers=73)
    write_identifiers(path, [f"p{i}" for i in range(72)])
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory, puzzles):
    """The overrides of a run over the puzzles, and its folder."""
    folder = tmp_path_factory.mktemp("single") / "run"
    changes = {"data_path": puzzles, "load_checkpoint": None, "global_batch_size": 16, "eval_save_outputs": "[labels]"}
    pretrain(folder, **changes)
    return changes, folder


@pytest.mark.apart
@pytest.mark.parametrize(
    ("start", "ranks"),
    [pytest.param(run, 2, id="torchrun, 2"), pytest.param(warm.run, 4, id="4")],
)
def test_ranks_equal_one_process(tmp_path, single, start, ranks):
    changes, alone = single
    together = tmp_path / "run"
    start("pretrain.py", *reference_overrides(together, **changes), ranks=ranks)
    lines = read_metrics(alone)
    assert len(lines) > 20
    assert_lines_close(read_metrics(together), lines, rtol=1e-4)
    step = lines[-1]["step"]
    one, many = (load(folder / f"step_{step}") for folder in (alone, together))
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=0, atol=1e-5)
    table = "model.inner.puzzle_emb.weights"
    assert one[table].any(dim=1).sum() > 30
    torch.testing.assert_close(many[table], one[table], rtol=0, atol=1e-6)
    labels = [
        torch.cat([load(path)["labels"] for path in sorted(folder.glob(f"step_{step}_all_preds.*"))])
        for folder in (alone, together)
    ]
    rows = [sorted(map(tuple, part[part[:, 0] != -100].tolist())) for part in labels]
    assert rows[0] == rows[1]


def test_without_puzzle_embeddings_and_with_learned_positions(tmp_path):
    changes = {"load_checkpoint": None, "epochs": 4, "arch.puzzle_emb_ndim": 0, "arch.pos_encodings": "learned"}
    lines = pretrain(tmp_path / "run", **changes, **{"arch.loss.loss_type": "softmax_cross_entropy"})
    assert lines_with(lines, "train/")[-1]["train/lm_loss"] < 0.8 * lines[0]["train/lm_loss"]


def test_several_sets_are_reported_apart_and_together():
    got = eval_metrics({"a": {"accuracy": 3.0, "count": 4.0}, "b": {"accuracy": 0.0, "count": 2.0}})
    assert got == {"eval/accuracy": 0.5, "eval/a/accuracy": 0.75, "eval/b/accuracy": 0.0}


REFUSED = {
    "unknown key": (["lrr=1"], "unknown config key 'lrr'; did you mean 'lr'?"),
    "unknown key with plus": (["+arch.H_cycle=3"], "unknown config key 'arch.H_cycle'; did you mean 'arch.H_cycles'?"),
    "unknown nested key": (["arch.loss.kind=x"], "unknown config key 'arch.loss.kind'"),
    "ill-typed": (["epochs=many"], "epochs: "),
    "ill-typed, nested": (["arch.num_heads=2.5"], "arch.num_heads: "),
    "negative lr": (["lr=-1"], "lr: Input should be greater than or equal to 0"),
    "infinite lr": (["lr=inf"], "lr: "),
    "heads": (["arch.hidden_size=130", "arch.num_heads=4"], "hidden_size=130 is not divisible by num_heads=4"),
    "eval_interval": (["epochs=10", "eval_interval=4"], "eval_interval=4 does not divide epochs=10"),
    "loss": (["arch.loss.loss_type=hinge"], "arch.loss.loss_type: "),
    "experiment": (["+experiment=sudoku"], "experiment/sudoku"),
    "grammar": (["epochs=[1"], "epochs"),
    "no dataset": (["data_path=tests/nowhere"], "no dataset at tests/nowhere"),
    "batch too large": (["global_batch_size=4096"], "do not fill one batch of 4096"),
    "checkpoint": (["load_checkpoint=tests/nowhere"], "tests/nowhere does not exist; name a checkpoint"),
    "device": (["device=tpu"], "device: "),
    "attention": (["arch.attention=flash2"], "arch.attention=flash2 needs CUDA and half precision"),
    "bool for a number": (["epochs=true"], "epochs: Input should not be true or false"),
    "average of frozen weights": (["freeze=weights", "ema_decay=0.9"], "leaves nothing for ema_decay to average"),
    "frozen weights alone": (["freeze=weights", "arch.puzzle_emb_ndim=0"], "puzzle_emb_ndim=0: there are none"),
    "resume from nowhere": (["resume=true", "checkpoint_path=null"], "resume=true needs checkpoint_path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_in_one_line(tmp_path, case, monkeypatch, capsys):
    """In this process, since starting one costs two seconds; the next test does it for real."""
    overrides, message = REFUSED[case]
    given = {override.split("=")[0] for override in overrides}
    base = [override for override in reference_overrides(tmp_path / "run") if override.split("=")[0] not in given]
    monkeypatch.setattr("sys.argv", ["pretrain.py", *base, *overrides])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data_path", "project"),
    [
        ("data/arc-aug-1000", "Arc-aug-1000 ACT-torch"),
        ("data/sudoku-extreme-1k-aug-1000/", "Sudoku-extreme-1k-aug-1000 ACT-torch"),
    ],
)
def test_a_project_is_called_as_in_the_original(data_path, project):
    config = name_run(composed(f"data_path={data_path}"))
    assert config.project_name == project
    assert config.run_name.startswith("HierarchicalReasoningModel_ACTV1 ")
    assert config.checkpoint_path == f"checkpoints/{project}/{config.run_name}"
    assert name_run(composed("project_name=My Project")).project_name == "My Project"


def test_a_mistake_is_one_line_for_the_shell_too(tmp_path):
    line = error_line("pretrain.py", *reference_overrides(tmp_path / "run"), "+arch.H_cycle=3")
    assert line == "error: unknown config key 'arch.H_cycle'; did you mean 'arch.H_cycles'?"
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    for key in ("global_batch_size", "eval_batch_size"):
        line = refusal(capsys, tmp_path / "run", **{key: 9})
        assert line == f"error: {key}=9 is not divisible by the 2 ranks; choose a multiple of 2"
    assert not (tmp_path / "run").exists()


def test_a_used_run_folder_is_not_overwritten(reference_run, capsys):
    folder, _ = reference_run
    before = (folder / "metrics.jsonl").read_bytes()
    assert "already holds a run" in refusal(capsys, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_without_a_checkpoint_yet_is_not_overwritten(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    line = refusal(capsys, folder)
    assert f"checkpoint_path={folder} already holds a run; go on with it (resume=true)" in line
    assert read_metrics(folder) == [{"step": 1}]
    assert len(list(folder.iterdir())) == 1


def test_a_run_ends_at_its_last_step_where_a_pass_has_more_batches(tmp_path):
    """The length is computed from the mean size of all puzzles; here the groups with large ones have fewer of them.

    An epoch draws 16 puzzles of four examples and 16 of one: 80 examples, where 32 groups × 1.75 examples are counted.
    """
    path = tmp_path / "data"
    path.mkdir()
    sizes = [4] * 16 + [1] * 48
    tokens = np.random.default_rng(0).integers(1, 6, (sum(sizes), 16))
    for split in ("train", "test"):
        writer = SplitWriter(path, split, seq_len=16)
        writer.append(
            tokens, tokens, puzzle_identifiers=np.zeros(64), puzzle_sizes=sizes, group_sizes=[1] * 16 + [3] * 16
        )
        writer.finish(vocab_size=6, num_puzzle_identifiers=1)
    write_identifiers(path, [])
    changes = {"data_path": path, "load_checkpoint": None, "global_batch_size": 16, "epochs": 4, "eval_interval": 2}
    lines = pretrain(tmp_path / "run", **changes)
    train = lines_with(lines, "train/lr")
    assert [line["step"] for line in train] == list(range(1, 14 + 1))  # 4 × 32 × 1.75 / 16
    assert train[-1]["train/lr"] == pytest.approx(0.1 * 1e-3)  # where the cosine ends
    first, last = (line["step"] for line in lines_with(lines, "eval/"))
    assert 7 < first < last == 14


def test_every_experiment_has_the_hyperparameters_of_the_paper():
    base = dict(
        global_batch_size=768, epochs=100_000, eval_interval=10_000, lr=1e-4, lr_min_ratio=1, lr_warmup_steps=2000,
        beta1=0.9, beta2=0.95, weight_decay=0.1, puzzle_emb_lr=1e-2, puzzle_emb_weight_decay=0.1,
    )  # fmt: skip
    sudoku = base | dict(
        epochs=20_000, eval_interval=2000, puzzle_emb_lr=1e-4, weight_decay=1, puzzle_emb_weight_decay=1
    )
    full = base | dict(
        epochs=100, eval_interval=10, lr_min_ratio=0.1, global_batch_size=2304, lr=3e-4, puzzle_emb_lr=3e-4
    )
    expected = {
        "arc_1": base | dict(data_path="data/arc-aug-1000"),
        "arc_2": base | dict(data_path="data/arc-2-aug-1000"),
        "sudoku_extreme_1k": sudoku | dict(data_path="data/sudoku-extreme-1k-aug-1000"),
        "sudoku_extreme_1k_laptop": sudoku
        | dict(data_path="data/sudoku-extreme-1k-aug-1000", global_batch_size=384, lr=7e-5, puzzle_emb_lr=7e-5),
        "sudoku_extreme_full": full | dict(data_path="data/sudoku-extreme-full"),
        "maze_hard_1k": sudoku | dict(data_path="data/maze-30x30-hard-1k"),
    }
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        for name, values in expected.items():
            config = from_hydra(compose("cfg_pretrain", overrides=[f"+experiment={name}"]))
            assert {key: getattr(config, key) for key in values} == values, name
            arch = config.arch.model_dump(include={"L_cycles", "halt_max_steps", "pos_encodings"})
            special = name == "sudoku_extreme_full"
            assert arch == dict(
                L_cycles=8 if special else 2,
                halt_max_steps=8 if special else 16,
                pos_encodings="learned" if special else "rope",
            )
            assert config.arch.loss.loss_type == ("softmax" if special else "stablemax") + "_cross_entropy"
            assert config.arch.puzzle_emb_ndim == config.arch.hidden_size == 512


def test_a_published_config_loads():
    path = ROOT / "tests/reference/published_all_config.yaml"
    config = load_config(str(path))
    published = yaml.safe_load(path.read_text())
    ours = json.loads(config.model_dump_json())
    assert {key: ours[key] for key in published if key != "arch"} == {k: v for k, v in published.items() if k != "arch"}
    assert {key: ours["arch"][key] for key in published["arch"]} == published["arch"]


def test_a_config_of_an_earlier_version_loads(tmp_path, caplog):
    """With keys and choices that there were then; of those that computed otherwise it is said."""
    published = yaml.safe_load((ROOT / "tests/reference/published_all_config.yaml").read_text())
    published["arch"] |= {"q_target": "every_n", "q_target_interval": 4, "forward_dtype": "float16"}
    path = tmp_path / "all_config.yaml"
    path.write_text(yaml.safe_dump(published))
    arch = load_config(str(path)).arch
    assert (arch.q_target, arch.forward_dtype) == ("every_step", "auto")
    assert caplog.messages == ["forward_dtype=float16 is no longer supported: using auto"]


def test_without_a_q_target_there_is_no_loss_of_q_continue(tmp_path):
    lines = lines_with(pretrain(tmp_path / "run", epochs=4, **{"arch.q_target": "off"}), "train/")
    assert len(lines) == 20
    assert not lines_with(lines, "train/q_continue_loss")


def test_a_finished_run_has_a_full_bar(tmp_path, capsys):
    """The number of steps is known beforehand only about: a pass ends where a batch cannot be filled."""
    steps = pretrain(tmp_path / "run", epochs=4, eval_interval=1, global_batch_size=7)[-1]["step"]
    assert re.search(rf"train: 100%.*\| {steps}/{steps} ", capsys.readouterr().err.split("\r")[-1])


def test_the_first_step_does_not_count_in_what_is_left(tmp_path, capsys, monkeypatch):
    """It compiles, or sets up the device, which tells nothing about the others."""
    waits = iter([1.5])

    def bar(*args, **options):
        shown = progress_bar(*args, **options)
        shown.mininterval = 0
        return shown

    monkeypatch.setattr("pretrain.train_step", lambda *args: (time.sleep(next(waits, 0)), train_step(*args))[1])
    monkeypatch.setattr("pretrain.progress_bar", bar)
    pretrain(tmp_path / "run", epochs=8, eval_interval=8)
    bars = re.findall(r"train: .*?(\d+)/40 \[\d\d:\d\d<(\d\d):(\d\d)", capsys.readouterr().err)
    left = [60 * int(minutes) + int(seconds) for step, minutes, seconds in bars if int(step) in (2, 3)]
    assert left and max(left) < 20
