"""Runs on the Hugging Face Hub, the transport replaced by folders: python -m pytest tests/test_hub.py"""

import functools
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import signal
import stat
import threading
import time

import pytest
import torch
import yaml
from huggingface_hub import HfApi, RepoUrl, snapshot_download
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from errors import UserError
from tests import warm
from tests.launch import ROOT, error_line
from tests.runs import PIPELINE, TRAJECTORY, load, of_the_original
from training import hub
from training.checkpoints import load_weights, read_weights, save_weights, trained_on
from training.config import load_config

REPO = "someone/small-run"


class FakeHub:
    """Repositories as folders; takes and gives files as the Hub does, patterns included."""

    def __init__(self, root):
        self.root, self.private, self.uploads = root, {}, 0

    def create_repo(self, repo, *, private, exist_ok):
        repo = repo if "/" in repo else f"someone/{repo}"
        assert exist_ok
        (self.root / repo).mkdir(parents=True, exist_ok=True)
        self.private.setdefault(repo, private)
        return RepoUrl(f"https://huggingface.co/{repo}")

    def repo_info(self, repo):
        return type("RepoInfo", (), {"private": self.private[repo]})

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        assert commit_message
        place = self.root / repo_id
        for name in filter_repo_objects(self.list_repo_files(repo_id), allow_patterns=delete_patterns):
            (place / name).unlink()
        shutil.copytree(folder_path, place, dirs_exist_ok=True)
        self.uploads += 1

    def list_repo_files(self, repo):
        return [
            path.relative_to(self.root / repo).as_posix() for path in (self.root / repo).rglob("*") if path.is_file()
        ]

    def snapshot_download(self, repo, *, revision, allow_patterns, ignore_patterns):
        """Links to read-only files, as in the cache of the Hub's client."""
        snapshot = self.root / "cache" / repo / (revision or "main")
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir(parents=True)
        for name in filter_repo_objects(
            self.list_repo_files(repo), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (self.root / repo / name).chmod(0o444)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(self.root / repo / name)
        return str(snapshot)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    return fake


def write_config(folder):
    config = yaml.safe_load((ROOT / "tests/reference/published_all_config.yaml").read_text())
    config["arch"] |= TRAJECTORY["config"]["arch"]
    config |= dict(data_path=str(PIPELINE / "dataset"), global_batch_size=8, seed=7)
    (folder / "all_config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def folder(tmp_path):
    """A run with all that may lie in it."""
    folder = tmp_path / "runs" / "a run"  # a blank in the name, as in default run names
    (folder / "state_60").mkdir(parents=True)
    (folder / "state_60" / "model.pt").write_bytes(b"state")
    write_config(folder)
    lines = [
        {"step": 40, "eval/exact_accuracy": 0.25},
        {"step": 60, "train/lm_loss": 0.5},
        {"step": 60, "eval/exact_accuracy": 0.75},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "losses.py").write_text("# the head\n")
    (folder / "hrm_act_v1.py").write_text("# the model\n")
    (folder / "step_60_all_preds.0").write_bytes(b"predictions")
    (folder / "learning_curves.png").write_bytes(b"picture")
    shutil.copy(PIPELINE / "init_checkpoint.pt", folder / "step_9")  # 9 < 60, "step_9" > "step_60"
    shutil.copy(PIPELINE / "final_checkpoint.pt", folder / "step_60")
    return folder


def raw(tensor: torch.Tensor) -> tuple:
    """dtype, shape and every bit, in row-major order."""
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same_bits(got: dict, expected: dict):
    assert got.keys() == expected.keys()
    assert {key: raw(value) for key, value in got.items()} == {key: raw(value) for key, value in expected.items()}


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_every_tensor_comes_back_bit_for_bit(fake, folder, tmp_path):
    hub.push(folder, REPO)
    checkpoint = hub.pull(REPO, tmp_path / "pulled" / "b")
    assert checkpoint == tmp_path / "pulled" / "b" / "step_60"
    assert_same_bits(load(checkpoint), load(PIPELINE / "final_checkpoint.pt"))


def test_odd_tensors_come_back_bit_for_bit(fake, folder, tmp_path):
    """Other dtypes, special values, views of one storage, transposed and empty tensors, and the compiled prefix."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, generator=generator)
    weights = (
        load(PIPELINE / "final_checkpoint.pt")
        | {
            "model.inner.H_init": torch.randn(32, generator=generator).bfloat16(),
            "half": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float16),
            "nan": torch.tensor([0x7FC12345, 0x7F812345, 1], dtype=torch.int32).view(
                torch.float32
            ),  # payloads, a denormal
            "scalar": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
            "whole": whole,
            "same": whole,
            "part": whole[2:4],
            "transposed": whole.T,
            "expanded": whole[:1].expand(5, 4),
        }
    )
    torch.save({f"_orig_mod.{key}": value for key, value in weights.items()}, folder / "step_61")
    hub.push(folder, REPO)
    assert_same_bits(load_file(fake.root / REPO / "model.safetensors"), weights)
    assert_same_bits(load(hub.pull(REPO, tmp_path / "pulled")), weights)


def test_what_is_uploaded(fake, folder):
    assert hub.push(folder, "small-run") == REPO  # with the user's name before it
    place = fake.root / REPO
    records = {"all_config.yaml", "metrics.jsonl", "hrm_act_v1.py", "losses.py"}
    assert names(place) == records | {"model.safetensors", "README.md", "dataset.json"}
    assert (place / "dataset.json").read_bytes() == (PIPELINE / "dataset/train/dataset.json").read_bytes()
    for name in records:
        assert (place / name).read_bytes() == (folder / name).read_bytes()
    with safe_open(place / "model.safetensors", framework="pt") as file:
        about = file.metadata()
    assert re.fullmatch("[0-9a-f]{64}", about.pop("sha256"))
    assert about == {"format": "pt", "checkpoint": "step_60", "step": "60"}
    assert fake.uploads == 1


STRANGERS = ("my_secrets.py", "numpy.py", "notes.txt", ".env", "id_rsa", "step_60.py", "all_config.yaml.bak")


def test_only_what_a_run_writes_is_uploaded(fake, folder, capsys):
    """By a list of names: nobody knows what else lies in a folder."""
    for name in STRANGERS:
        (folder / name).write_text("hf_secret")
    hub.push(folder, REPO)
    place = fake.root / REPO
    assert not names(place) & set(STRANGERS)
    assert not any(b"hf_secret" in path.read_bytes() for path in place.iterdir())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert line.split(": ")[1] == "all_config.yaml.bak, id_rsa, my_secrets.py, notes.txt, numpy.py"


def test_only_what_a_run_holds_is_brought(fake, folder, tmp_path):
    hub.push(folder, REPO)
    for name in STRANGERS:
        (fake.root / REPO / name).write_text("raise SystemExit")
    hub.pull(REPO, tmp_path / "pulled")
    assert not names(tmp_path / "pulled") & set(STRANGERS)


def test_the_environment_travels_without_the_commands(fake, folder, tmp_path):
    start = {"command": ["python", "pretrain.py", "run_name=hf_secret"], "git_commit": "abc", "python": "3.11.7"}
    start |= {"packages": {"torch": "2.13"}, "device": "cpu (x86_64)", "ranks": 1, "HF_TOKEN": "hf_secret"}
    (folder / "environment.json").write_text(json.dumps([start, start]))
    hub.push(folder, REPO)
    uploaded = (fake.root / REPO / "environment.json").read_text()
    assert "hf_secret" not in uploaded and "pretrain" not in uploaded
    assert json.loads(uploaded)[1] == {key: start[key] for key in hub.ENVIRONMENT}
    hub.pull(REPO, tmp_path / "pulled")
    assert (tmp_path / "pulled" / "environment.json").read_text() == uploaded


def test_a_command_that_is_none_is_not_shown(folder):
    (folder / "environment.json").write_text('[{"command": 3}]')
    assert hub.first_command(folder) is None


def test_tensors_that_changed_on_the_way_are_refused(fake, folder, tmp_path):
    hub.push(folder, REPO)
    place = fake.root / REPO / "model.safetensors"
    content = bytearray(place.read_bytes())
    content[-100] ^= 1
    place.write_bytes(content)
    with pytest.raises(
        UserError, match="does not hold the tensors that were written: it is damaged; get the file again"
    ):
        hub.pull(REPO, tmp_path / "pulled")


def test_metrics_that_changed_are_not_published(fake, folder):
    lines = (folder / "metrics.jsonl").read_bytes()
    saved = {"metrics_bytes": len(lines), "metrics_sha256": hashlib.sha256(lines).hexdigest(), "progress": {"step": 60}}
    (folder / "state_60/manifest.json").write_text(json.dumps(saved))
    hub.push(folder, REPO)
    (folder / "metrics.jsonl").write_bytes(lines.replace(b"0.75", b"8.75"))
    with pytest.raises(UserError, match=r"metrics\.jsonl is not what the run had written at step 60"):
        hub.push(folder, "another")
    assert not (fake.root / "someone/another").exists()


@pytest.mark.parametrize("data", ["0123456789abcdef", "0123456789abcdef" * 2])
def test_a_pulled_checkpoint_knows_what_it_was_trained_on(fake, folder, tmp_path, data):
    save_weights(folder / "step_60", load(folder / "step_60"), data=data)
    hub.push(folder, REPO)
    pulled = hub.pull(REPO, tmp_path / "pulled")
    assert trained_on(pulled) == data
    assert_same_bits(read_weights(pulled), load(folder / "step_60"))
    pulled.write_bytes((folder / "step_9").read_bytes())
    with pytest.raises(UserError, match="is not what the run wrote"):
        hub.push(pulled.parent, REPO)


def test_a_secret_that_a_config_asks_for_is_not_published(fake, folder, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    config = yaml.safe_load((folder / "all_config.yaml").read_text()) | {"data_path": "data/${oc.env:SECRET_TOKEN}"}
    (folder / "all_config.yaml").write_text(yaml.safe_dump(config))
    hub.push(folder, REPO)
    assert not any(b"hf_secret" in path.read_bytes() for path in (fake.root / REPO).iterdir())


def test_a_dataset_s_name_stays_in_its_cell(fake, folder):
    config = yaml.safe_load((folder / "all_config.yaml").read_text()) | {"data_path": "x`|\n```\n<script>"}
    (folder / "all_config.yaml").write_text(yaml.safe_dump(config))
    hub.push(folder, REPO)
    card = (fake.root / REPO / "README.md").read_text()
    assert "| dataset folder | `x________script_` |" in card
    assert card.count("```") == 2 and "<script>" not in card


@pytest.mark.parametrize("inside", ["run", "runs/a [1]", "./run/"])
def test_a_run_in_a_folder_of_a_repository(fake, folder, tmp_path, monkeypatch, capsys, inside):
    hub.push(folder, REPO)
    whole = fake.root / REPO
    shutil.move(whole, fake.root / "moved")
    shutil.move(fake.root / "moved", whole / inside)
    (whole / "checkpoint").write_bytes(b"of another run")
    monkeypatch.chdir(tmp_path)
    hub.main(["pull", REPO, "--subfolder", inside])
    pulled = tmp_path / "checkpoints" / "small-run" / inside
    assert f"{inside.strip('./')}/step_60" in capsys.readouterr().out
    assert names(pulled) == {
        "all_config.yaml",
        "metrics.jsonl",
        "hrm_act_v1.py",
        "losses.py",
        "step_60",
        "README.md",
        "dataset.json",
    }
    assert_same_bits(load(pulled / "step_60"), load(PIPELINE / "final_checkpoint.pt"))
    for wrong, message in (("rum", "it has no folder rum"), ("../x", "leaves the repository"), ("/x", "leaves")):
        with pytest.raises(UserError, match=message):
            hub.pull(REPO, tmp_path / "other", subfolder=wrong)
    assert not (tmp_path / "other").exists()


def test_the_model_card(fake, folder, tmp_path):
    hub.push(folder, REPO)
    _, head, text = (fake.root / REPO / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "pytorch"
    assert "| dataset folder | `dataset` |" in text
    assert str(PIPELINE) not in text
    assert "| `eval/exact_accuracy` | 0.7500 |" in text
    assert f"python -m training.hub pull {REPO} checkpoints/small-run\n" in text
    assert "checkpoint=checkpoints/small-run/step_60 " in text
    hub.push(folder, REPO, checkpoint="step_9")  # was not evaluated
    assert "exact_accuracy" not in (fake.root / REPO / "README.md").read_text()


def test_what_is_pulled(fake, folder, tmp_path):
    hub.push(folder, REPO)
    (fake.root / REPO / "step_60_all_preds.0").write_bytes(b"predictions")
    (fake.root / REPO / "step_60_preds").mkdir()
    (fake.root / REPO / "step_60_preds/answers.0.npy").write_bytes(b"predictions")
    (fake.root / REPO / "extra.bin").write_bytes(b"something else")
    target = tmp_path / "pulled"
    hub.pull(REPO, target)
    records = {"all_config.yaml", "metrics.jsonl", "hrm_act_v1.py", "losses.py"}
    beside = {"README.md", "dataset.json"}
    assert names(target) == records | beside | {"step_60"}
    assert names(fake.root / "cache" / REPO / "main") == records | beside | {"model.safetensors"}  # nor downloaded
    for name in records:
        assert (target / name).read_bytes() == (folder / name).read_bytes()
        assert (target / name).stat().st_mode & stat.S_IWUSR and not (target / name).is_symlink()
    made = tmp_path / "made"
    made.mkdir()
    assert target.stat().st_mode == made.stat().st_mode  # as readable to others as any folder


@pytest.mark.parametrize("fill", [False, True])
def test_a_pulled_run_is_pushed_and_pulled_again(fake, folder, tmp_path, fill):
    hub.push(folder, REPO)
    (tmp_path / "first").mkdir()  # an empty folder may be there
    hub.pull(REPO, tmp_path / "first")
    if fill:
        (tmp_path / "first" / "metrics.jsonl").unlink()
    hub.push(tmp_path / "first", REPO)
    assert (fake.root / REPO / "metrics.jsonl").exists() != fill  # another run's would be misleading
    second = hub.pull(REPO, tmp_path / "second")
    assert_same_bits(load(second), load(PIPELINE / "final_checkpoint.pt"))


def test_nothing_stays_of_an_earlier_push_of_another_run(fake, folder):
    (folder / "environment.json").write_text(json.dumps([{"python": "3.12"}]))
    hub.push(folder, REPO)
    place = fake.root / REPO
    (place / "another_architecture[v2].py").write_text("# the model of a run before")
    (place / "notes.txt").write_text("the user's")
    (place / "other").mkdir()
    for name in ("model.py", "dataset.json"):
        (place / "other" / name).write_text("of a run in a folder of its own")
    assert names(place) >= {"environment.json", "dataset.json", "metrics.jsonl", "losses.py", "hrm_act_v1.py"}
    for name in ("environment.json", "metrics.jsonl", "losses.py"):
        (folder / name).unlink()
    config = yaml.safe_load((folder / "all_config.yaml").read_text())
    (folder / "all_config.yaml").write_text(yaml.safe_dump(config | {"data_path": "gone"}))
    hub.push(folder, REPO)
    uploaded = {"model.safetensors", "README.md", "all_config.yaml", "hrm_act_v1.py"}
    assert names(place) == uploaded | {"notes.txt", "other"}
    assert names(place / "other") == {"model.py", "dataset.json"}


@pytest.mark.parametrize("name", ["push", "pack"])
def test_the_help_says_which_checkpoint_is_taken(name, capsys):
    with pytest.raises(SystemExit):
        hub.main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "its file name; best: the one in best.json; null: the best, else the last" in text


def test_which_checkpoint_is_pushed(fake, folder, tmp_path):
    torch.save({"w": torch.ones(2)}, folder / "step_60_ema")
    (folder / "best.json").write_text(json.dumps({"checkpoint": "step_9", "step": 9}))
    for asked, expected in [
        (None, "step_9"),
        ("step_60_ema", "step_60_ema"),
        ("best", "step_9"),
        ("step_9", "step_9"),
    ]:
        hub.push(folder, REPO, checkpoint=asked)
        pulled = hub.pull(REPO, tmp_path / f"from {asked}")
        assert pulled.name == expected
        assert_same_bits(load(pulled), load(folder / expected))


def model_of(checkpoint) -> torch.nn.Module:
    """The model as the config beside the checkpoint describes it, with its weights."""
    config = load_config(str(checkpoint.with_name("all_config.yaml")))
    sizes = json.loads((PIPELINE / "dataset/test/dataset.json").read_text())
    sizes = {key: sizes[key] for key in ("seq_len", "vocab_size", "num_puzzle_identifiers")}
    head = config.arch.build(batch_size=8, **sizes)
    load_weights(head, checkpoint)
    return head


def test_a_pulled_model_is_the_one_that_was_pushed(fake, folder, tmp_path):
    hub.push(folder, REPO)
    checkpoint = hub.pull(REPO, tmp_path / "pulled")
    assert_same_bits(model_of(checkpoint).state_dict(), load(PIPELINE / "final_checkpoint.pt"))


@pytest.mark.slow
def test_a_pulled_model_is_evaluated(fake, folder, tmp_path):
    hub.push(folder, REPO)
    checkpoint = hub.pull(REPO, tmp_path / "pulled")
    done = warm.run("evaluate.py", f"checkpoint={checkpoint}", "save_format=none")
    rows = dict(line.split() for line in done.stdout.splitlines() if line.startswith("eval/"))
    expected = TRAJECTORY["eval"][-1]["all"]
    assert of_the_original({key: float(value) for key, value in rows.items()}) == {
        f"eval/{key}": pytest.approx(value, abs=6e-5) for key, value in expected.items()
    }


@pytest.mark.parametrize("files", [["checkpoint"], ["step_9", "step_60"]])
def test_repositories_of_the_original(fake, tmp_path, files):
    """A bare pickled state dict with the compiled prefix; the step is known only where the name tells it."""
    place = fake.root / REPO
    place.mkdir(parents=True)
    write_config(place)
    weights = load(PIPELINE / "final_checkpoint.pt")
    torch.save({"w": torch.zeros(1)}, place / files[0])
    torch.save({f"_orig_mod.{key}": value for key, value in weights.items()}, place / files[-1])
    checkpoint = hub.pull(REPO, tmp_path / "pulled")
    assert names(tmp_path / "pulled") == {files[-1], "all_config.yaml"}
    assert checkpoint.name == files[-1]
    assert_same_bits(load(checkpoint), weights)
    assert_same_bits(model_of(checkpoint).state_dict(), weights)
    hub.push(tmp_path / "pulled", "someone/again", checkpoint=files[-1])
    assert hub.pull("someone/again", tmp_path / "again").name == files[-1]


def test_a_private_push_is_private(fake, folder):
    hub.push(folder, REPO, private=True)
    assert fake.private[REPO]
    hub.push(folder, "someone/open")
    before = (fake.root / "someone/open" / "README.md").read_text()
    with pytest.raises(UserError, match="is public"):
        hub.push(folder, "someone/open", checkpoint="step_9", private=True)
    assert (fake.root / "someone/open" / "README.md").read_text() == before


# Mistakes: one line each, and nothing left behind


@pytest.mark.parametrize(
    ("break_it", "checkpoint", "message"),
    [
        (shutil.rmtree, None, "is not a folder; name a run folder"),
        (lambda run: (run / "all_config.yaml").unlink(), None, "all_config.yaml is missing"),
        (lambda run: (run / "all_config.yaml").write_text("a: [1"), None, "is not the config of a run"),
        (lambda run: (run / "all_config.yaml").write_text("- 1"), None, "is not the config of a run"),
        (lambda run: [(run / name).unlink() for name in ("step_9", "step_60")], None, "holds no checkpoint step_<n>;"),
        (lambda run: None, "step_61", "no checkpoint step_61; it has step_9, step_60"),
        (lambda run: None, "metrics.jsonl", "no checkpoint metrics.jsonl"),
        (lambda run: None, "best", "no checkpoint best"),
        (lambda run: (run / "best.json").write_text("{"), "best", "best.json is damaged"),
        (
            lambda run: (run / "best.json").write_text('{"checkpoint": "step_9", "value": 0}'),
            "best",
            "no puzzle was right",
        ),
        (lambda run: (run / "step_60").write_bytes(b"?"), None, "step_60 is not a readable checkpoint"),
        (lambda run: torch.save([1], run / "step_60"), None, "step_60 is not a checkpoint"),
        (lambda run: torch.save({"w": 1}, run / "step_60"), None, "step_60 is not a checkpoint"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 6'), None, "metrics.jsonl is damaged"),
    ],
)
def test_a_run_that_cannot_be_pushed(fake, folder, break_it, checkpoint, message):
    break_it(folder)
    with pytest.raises(UserError, match=message):
        hub.push(folder, REPO, checkpoint)
    assert not fake.root.exists()  # not even an empty repository


ALIAS_BOMB = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [{9 * f'*a{i - 1},'}]\n" for i in range(1, 10))
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def bad_safetensors(place, weights, **about):
    save_file(weights, place / "model.safetensors", metadata=about)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda place: None, "holds no checkpoint"),
        (
            lambda place: (place / "all_config.yaml").unlink(),
            "^someone/small-run is not a run: .*all_config.yaml is missing",
        ),
        (lambda place: (place / "all_config.yaml").write_text("archi: 1"), "unknown config key 'archi'"),
        (lambda place: (place / "all_config.yaml").write_text(ALIAS_BOMB), "stands for more than"),
        (lambda place: (place / "all_config.yaml").write_text("a: &a [*a]"), "stands for more than"),
        (lambda place: (place / "all_config.yaml").write_text(LFS_POINTER), "git lfs pull"),
        (lambda place: (place / "checkpoint").write_text(LFS_POINTER), "git lfs pull|not a readable checkpoint"),
        (lambda place: (place / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
        (lambda place: (place / "model.safetensors").write_bytes(b"not safe at all"), "model.safetensors is damaged"),
        (lambda place: bad_safetensors(place, {}, step="60"), "holds no tensors|is damaged"),
        (lambda place: bad_safetensors(place, {"w": torch.ones(1)}, checkpoint="../step_1"), "names its checkpoint"),
        (lambda place: bad_safetensors(place, {"w": torch.ones(1)}, checkpoint="losses.py"), "names its checkpoint"),
        (lambda place: (place / "checkpoint").write_bytes(b"?"), "not a readable checkpoint"),
        (
            lambda place: (place / "checkpoint").write_bytes(pickle.dumps({"w": Trap(place / "sprung")}, protocol=2)),
            "it holds more than tensors",
        ),
    ],
)
def test_a_repository_that_cannot_be_pulled(fake, tmp_path, fill, message):
    place = fake.root / REPO
    place.mkdir(parents=True)
    write_config(place)
    fill(place)
    with pytest.raises(UserError, match=message):
        hub.pull(REPO, tmp_path / "runs" / "pulled")
    assert not (tmp_path / "runs").exists()
    assert not (place / "sprung").exists()


def test_an_existing_run_is_not_overwritten(fake, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("checked only after the download"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for target in (folder, folder / "step_60"):
        with pytest.raises(UserError, match="exists already"):
            hub.pull(REPO, target)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("when", ["during the download", "while writing", "interrupted while writing", "at the end"])
def test_a_failing_pull_leaves_nothing(fake, folder, tmp_path, monkeypatch, when):
    hub.push(folder, REPO)
    target = tmp_path / "pulls" / "b"
    seen = []

    def fail(*args, **kwargs):
        seen.append([path.name for path in tmp_path.glob("pulls/*")])
        raise KeyboardInterrupt if when.startswith("interrupted") else OSError(28, "No space left on device")

    def occupied(*args):
        (target / "other").mkdir(parents=True)  # somebody else makes the same run meanwhile

    if when == "during the download":
        monkeypatch.setattr(hub, "snapshot_download", fail)
    elif when == "at the end":
        copy = hub.copy_records
        monkeypatch.setattr(hub, "copy_records", lambda *args: (copy(*args), occupied()))
    else:
        monkeypatch.setattr(hub, "copy_records", fail)
    with pytest.raises(KeyboardInterrupt if when.startswith("interrupted") else UserError):
        hub.pull(REPO, target)
    left = list(tmp_path.glob("pulls/*"))
    if when == "at the end":
        assert left == [target] and names(target) == {"other"}
    else:
        assert left == []
        assert len(seen) == 1 and target.name not in seen[0]
        assert bool(seen[0]) == (when != "during the download")  # the sibling


def test_the_litter_of_a_killed_pull_is_removed(fake, folder, tmp_path):
    hub.push(folder, REPO)
    (tmp_path / "pulls" / ".b.0123abcd.tmp").mkdir(parents=True)
    (tmp_path / "pulls" / ".b.0123abcd.tmp" / "step_60").write_bytes(b"half")
    hub.pull(REPO, tmp_path / "pulls" / "b")
    assert names(tmp_path / "pulls") == {"b"}


def test_a_pull_that_is_told_to_end_leaves_nothing(fake, folder, tmp_path, monkeypatch):
    hub.push(folder, REPO)

    def save(*_):
        assert list((tmp_path / "pulls").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(hub.torch, "save", save)
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as end:
            hub.main(["pull", REPO, str(tmp_path / "pulls" / "b")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 128 + signal.SIGTERM
    assert names(tmp_path / "pulls") == set()


def test_a_failing_upload_is_one_line(fake, folder, monkeypatch):
    def fail(**_):
        raise OSError("connection reset\nand much more")

    monkeypatch.setattr(fake, "upload_folder", fail)
    with pytest.raises(
        UserError, match=r"cannot push to someone/small-run \(OSError: connection reset\); check"
    ) as error:
        hub.push(folder, REPO)
    assert "\n" not in str(error.value)


# The real client against a server on this machine that refuses everything


class Refusing(http.server.BaseHTTPRequestHandler):
    def __init__(self, *args, status, code, **kwargs):
        self.status, self.code = status, code
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        if self.code:
            self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def client(tmp_path, monkeypatch):
    """The client without the user's login and cache; -> a function that makes it ask a refusing server."""
    servers = []

    def ask(status, code=None):
        handler = functools.partial(Refusing, status=status, code=code)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        here = dict(endpoint=f"http://127.0.0.1:{servers[-1].server_port}", token=False)
        monkeypatch.setattr(hub, "HfApi", functools.partial(HfApi, **here))
        download = functools.partial(snapshot_download, cache_dir=tmp_path / "cache", **here)
        monkeypatch.setattr(hub, "snapshot_download", download)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield ask
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", r"RepositoryNotFoundError: .*check the name, and if it is private, log in"),
        (404, "RevisionNotFound", r"RevisionNotFoundError: .*choose an existing branch"),
        (403, "GatedRepo", r"GatedRepoError: .*ask for access"),
    ],
)
def test_pulling_what_the_hub_refuses(client, tmp_path, status, code, message):
    client(status, code)
    with pytest.raises(UserError, match=message):
        hub.pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("status", [401, 403])
def test_pushing_without_a_login(client, folder, status):
    client(status)
    with pytest.raises(UserError, match=r"cannot push to someone/small-run .*hf auth login.*write permission"):
        hub.push(folder, REPO)


def test_names_that_are_none(folder, tmp_path):
    for attempt in (lambda: hub.push(folder, "a/b/c"), lambda: hub.pull("a/b/c", tmp_path / "pulled")):
        with pytest.raises(UserError, match="a repository is named user/name"):
            attempt()


@pytest.mark.slow
def test_no_network_through_the_command_line(folder, tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": None}
    line = error_line("-m", "training.hub", "push", folder, REPO, run=warm.run, **environment)
    assert "OfflineModeIsEnabled" in line
    line = error_line("-m", "training.hub", "pull", REPO, tmp_path / "pulled", run=warm.run, **environment)
    assert "LocalEntryNotFoundError" in line
    assert "check the network, HF_HUB_OFFLINE" in line
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    line = error_line("-m", "training.hub", "pull", REPO, tmp_path / "pulled", run=warm.run, **environment)
    assert "check the network" in line
    assert not (tmp_path / "pulled").exists()


def test_the_command_line(fake, folder, tmp_path, capsys):
    hub.main(["push", str(folder), REPO, "--checkpoint", "step_9", "--private"])
    assert fake.private[REPO]
    assert f"training.hub pull {REPO}" in capsys.readouterr().out
    hub.main(["pull", REPO, str(tmp_path / "a pull"), "--revision", "v1"])
    assert f"'checkpoint={tmp_path}/a pull/step_9'" in capsys.readouterr().out
    assert (fake.root / "cache" / REPO / "v1").exists()
    with pytest.raises(SystemExit) as end:
        hub.main(["pull", REPO, str(tmp_path / "a pull")])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
