"""The published recipes of the family, and what others have written: python -m pytest tests/test_recipes.py"""

import re
from pathlib import Path

import pytest
import torch
import yaml

import evaluate
from errors import UserError
from models.layers import trunc_normal, trunc_normal_init_
from models.trm import TinyRecursiveModel
from tests.in_memory import FAMILY, METADATA, build_head, composed, random_batches
from tests.launch import ROOT
from tests.runs import PIPELINE, family_overrides, here, load, pretrain_here
from training.checkpoints import load_model
from training.config import PretrainConfig, load_config
from training.reasoning import Reasoner

TRM = dict(
    global_batch_size=768, lr=1e-4, lr_min_ratio=1, lr_warmup_steps=2000, beta1=0.9, beta2=0.95, ema_decay=0.999,
    optimizer="adam_atan2",
)  # fmt: skip
ON_SUDOKU = dict(
    epochs=50_000, eval_interval=5000, puzzle_emb_lr=1e-4, weight_decay=1, puzzle_emb_weight_decay=1,
    data_path="data/sudoku-extreme-1k-aug-1000",
)  # fmt: skip
ON_ARC = dict(epochs=100_000, eval_interval=10_000, puzzle_emb_lr=1e-2, weight_decay=0.1, puzzle_emb_weight_decay=0.1)
HRM = TRM | ON_SUDOKU | dict(epochs=20_000, eval_interval=2000, ema_decay=None)
ATTENTION = dict(L_layers=2, mlp_t=False, pos_encodings="rope", puzzle_emb_len=16, halt_max_steps=16)
MIXER = ATTENTION | dict(mlp_t=True, pos_encodings="none")
EQR = MIXER | dict(puzzle_emb_ndim=0, puzzle_emb_len=0, state_init="random", damping=0.95, noise=0.01)
URM = dict(num_layers=4, H_cycles=2, L_cycles=6, halt_max_steps=16)

SHAPES = {"sudoku": dict(seq_len=81, vocab_size=11), "maze": dict(seq_len=900, vocab_size=6)}
SHAPES["arc"] = dict(seq_len=900, vocab_size=12)

# Experiment: (the run, the architecture, the data, positions, weights)
RECIPES = {
    "trm_sudoku": (TRM | ON_SUDOKU, ATTENTION | dict(H_cycles=3, L_cycles=6), "sudoku", 97, 6_828_034),
    "trm_sudoku_mlp": (TRM | ON_SUDOKU, MIXER | dict(H_cycles=3, L_cycles=6), "sudoku", 97, 5_028_866),
    "trm_maze": (
        TRM | ON_SUDOKU | dict(data_path="data/maze-30x30-hard-1k"), ATTENTION | dict(H_cycles=3, L_cycles=4),
        "maze", 916, 6_822_914,
    ),
    "trm_arc_1": (
        TRM | ON_ARC | dict(data_path="data/arc-aug-1000"), ATTENTION | dict(H_cycles=3, L_cycles=4),
        "arc", 916, 6_829_058,
    ),
    "trm_arc_2": (
        TRM | ON_ARC | dict(data_path="data/arc-2-aug-1000"), ATTENTION | dict(H_cycles=3, L_cycles=4),
        "arc", 916, 6_829_058,
    ),
    "eqr_sudoku": (TRM | ON_SUDOKU, EQR | dict(H_cycles=3, L_cycles=6), "sudoku", 81, 4_855_298),
    "urm_sudoku": (TRM | ON_SUDOKU | dict(global_batch_size=128), URM, "sudoku", 82, 13_662_210),
    "transformer_sudoku": (HRM, dict(num_layers=8, halt_max_steps=16), "sudoku", 82, 27_275_266),
    "direct_sudoku": (HRM, dict(num_layers=8, halt_max_steps=1), "sudoku", 82, 27_275_266),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_the_hyperparameters_and_the_size_of_its_paper(name):
    """TRM's paper has 7 and 5 million weights; a Transformer of eight blocks has HRM's 27 million."""
    run, arch, data, positions, weights = RECIPES[name]
    config = composed(experiment=name)
    assert {key: getattr(config, key) for key in run} == run
    shape = dict(hidden_size=512, num_heads=8, expansion=4, halt_exploration_prob=0.1)
    assert {key: getattr(config.arch, key) for key in arch | shape} == arch | shape
    assert config.arch.loss.loss_type == "stablemax_cross_entropy"
    head = build_head(config, "meta", **SHAPES[data])
    assert head.model.inner.positions == positions
    assert sum(p.numel() for p in head.parameters()) == weights
    print(f"{name}: {weights:,}")


TRM_CONFIG = """
arch:
  H_cycles: 3
  H_layers: 0
  L_cycles: 6
  L_layers: 2
  expansion: 4
  forward_dtype: bfloat16
  halt_exploration_prob: 0.1
  halt_max_steps: 16
  hidden_size: 512
  loss: {loss_type: stablemax_cross_entropy, name: losses@ACTLossHead}
  mlp_t: true
  name: recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1
  no_ACT_continue: true
  num_heads: 8
  pos_encodings: none
  puzzle_emb_len: 16
  puzzle_emb_ndim: 512
beta1: 0.9
beta2: 0.95
checkpoint_every_eval: true
checkpoint_path: checkpoints/Sudoku/pretrain_mlp
data_paths: [data/sudoku-extreme-1k-aug-1000]
data_paths_test: []
ema: true
ema_rate: 0.999
epochs: 50000
eval_interval: 5000
eval_save_outputs: []
evaluators: [{name: arc@ARC}]
freeze_weights: false
global_batch_size: 768
load_checkpoint: null
lr: 0.0001
lr_min_ratio: 1.0
lr_warmup_steps: 2000
min_eval_interval: 0
project_name: Sudoku
puzzle_emb_lr: 0.0001
puzzle_emb_weight_decay: 1.0
run_name: pretrain_mlp
seed: 0
weight_decay: 1.0
"""
HRM_ARCH = dict(H_layers=4, L_layers=4, H_cycles=2, L_cycles=2, pos_encodings="rope")


def written(folder: Path, values: dict) -> Path:
    path = folder / "all_config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def trm_config(**changes) -> dict:
    """As TRM's repository writes it. `arch=…` and `loss=…` change single keys of theirs."""
    values = yaml.safe_load(TRM_CONFIG)
    values["arch"] |= changes.pop("arch", {})
    values["arch"]["loss"] |= changes.pop("loss", {})
    return values | changes


def hrm_config(**changes) -> dict:
    """The original's."""
    values = yaml.safe_load((ROOT / "tests/reference/published_all_config.yaml").read_text())
    values["arch"] |= changes.pop("arch", {})
    return values | changes


HRMS_COPY = HRM_ARCH | dict(
    name="recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1", mlp_t=False, no_ACT_continue=False
)


def urm_config(**changes) -> dict:
    arch = dict(name="urm.urm@URM", loops=16, num_layers=4, H_cycles=2, L_cycles=6, hidden_size=512, num_heads=8)
    arch |= dict(expansion=4, puzzle_emb_ndim=512, pos_encodings="rope", forward_dtype="bfloat16", attn_dropout=0.0)
    loss = trm_config()["arch"]["loss"]
    values = {key: value for key, value in trm_config().items() if key != "data_paths"}
    arch |= dict(halt_exploration_prob=0.1, mlp_dropout=0.0, loss=loss) | changes.pop("arch", {})
    return values | dict(arch=arch, data_path="data/sudoku-extreme-1k-aug-1000") | changes


def test_trms_config_is_the_recipe(tmp_path):
    config = load_config(str(written(tmp_path, trm_config())))
    recipe = composed(experiment="trm_sudoku_mlp")
    names = ("checkpoint_path", "project_name", "run_name")
    assert config.model_copy(update=dict.fromkeys(names)).model_dump(exclude={"arch"}) == recipe.model_dump(
        exclude={"arch"}
    )
    assert config.arch.model_dump() == recipe.arch.model_dump()  # forward_dtype=auto too: on CUDA the same


@pytest.mark.parametrize(
    ("values", "experiment"),
    [
        (trm_config(arch=HRMS_COPY), "sudoku_extreme_1k"),
        (hrm_config(), "sudoku_extreme_1k"),
        (urm_config(), "urm_sudoku"),
        (trm_config(arch=dict(puzzle_emb_len=None)), "trm_sudoku_mlp"),
    ],
    ids=["TRM's copy of HRM", "HRM", "URM", "TRM, which takes 16 positions unless it is told"],
)
def test_the_architecture_of_another_repository_is_the_recipes(tmp_path, values, experiment):
    config = load_config(str(written(tmp_path, values)))
    assert config.arch.model_dump() == composed(experiment=experiment).arch.model_dump()


NULLS = dict.fromkeys(("eval_interval", "run_name", "project_name", "load_checkpoint", "checkpoint_path", "seed"))
UNKNOWN = dict(ema_start=3, schedule={"kind": "cosine"}, wandb_tags=["a"])
ALSO_HERE = dict(optimizer="sgd", device="cuda:0", compile="max", early_stop=True)  # other things under our names
PLAIN = dict(data_path="data/sudoku-extreme-1k-aug-1000", ema_decay=0.999, seed=0)


@pytest.mark.parametrize(
    ("values", "expected", "warning"),
    [
        (trm_config(data_paths=["a", "b"]), {"data_path": "a"}, "trained on 2 datasets: 'a' is taken for its dataset"),
        (trm_config(data_paths_test=["c"], evaluators=[{"name": "arc@ARC", "submission_K": 2}]), PLAIN, ""),
        (trm_config(evaluators=None, eval_save_outputs=None, min_eval_interval=None, **NULLS), PLAIN, ""),
        (trm_config(ema=False, ema_rate=None), {"ema_decay": None}, ""),
        (trm_config(**UNKNOWN), PLAIN, "how the model was trained: 'ema_start', 'schedule', 'wandb_tags'"),
        (trm_config(**ALSO_HERE), PLAIN | {"device": "auto", "optimizer": "adam_atan2"}, "'optimizer', 'device'"),
        (trm_config(**{f"k{i}": 0 for i in range(30)}), PLAIN, "'k7' and 22 more"),
        (trm_config(loss={"q_weight": 0.05}), PLAIN, "was trained: 'arch.loss.q_weight'"),
        (trm_config(arch={"gated": None}), PLAIN, ""),
        (trm_config(arch=HRMS_COPY, **UNKNOWN), PLAIN, "'ema_start', 'schedule', 'wandb_tags'"),
        (urm_config(**UNKNOWN, **NULLS), PLAIN, "'ema_start', 'schedule', 'wandb_tags'"),
        (hrm_config(**UNKNOWN, **NULLS), PLAIN | {"ema_decay": None}, "'ema_start', 'schedule', 'wandb_tags'"),
    ],
)
def test_what_another_repository_says_of_its_training_does_not_keep_a_config_from_loading(
    tmp_path, caplog, values, expected, warning
):
    path = tmp_path / "all_config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    config = load_config(str(path))
    assert {key: getattr(config, key) for key in expected} == expected
    assert warning in caplog.text
    assert bool(caplog.records) == bool(warning)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (trm_config(arch={"gated": False, "k": 3}), "unknown config key 'arch.gated', 'arch.k': it may change what"),
        (
            trm_config(arch=HRMS_COPY | {"mlp_t": True}),
            "unknown config key 'arch.mlp_t': it may change what the network",
        ),
        (urm_config(arch={"gated": 1}), "urm@UniversalReasoningModel has no such option; take it out of the file if"),
        (hrm_config(arch={"gated": 1}), "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1 has no such option"),
        (
            trm_config(arch={"name": "recursive_reasoning.trm_hier6@Model"}),
            "trm_hier6.py does not exist; it is <module>",
        ),
        (trm_config(arch={"name": [1]}), "arch: name=[1]: it must be <module>@<class> below models/"),
        (trm_config(arch={"hidden_size": None}), "arch.hidden_size: Field required"),
        (trm_config(loss={"loss_type": "focal"}), "arch.loss.loss_type: Input should be 'stablemax_cross_entropy' or"),
        (trm_config(data_paths=[]), "data_path: Field required"),
        (trm_config(arch={}) | {"arch": None}, "arch: Field required"),
    ],
)
def test_what_another_repositorys_config_lacks_is_said(tmp_path, values, message):
    with pytest.raises(UserError) as refused:
        load_config(str(written(tmp_path, values)))
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("experiment", "values"),
    [
        ("trm_sudoku_mlp", trm_config()),
        ("trm_sudoku_mlp", trm_config(data_paths=["data/one", "data/two"])),
        ("trm_arc_1", trm_config(arch=dict(mlp_t=False, pos_encodings="rope", L_cycles=4))),
        ("sudoku_extreme_1k", hrm_config()),
        ("urm_sudoku", urm_config()),
    ],
    ids=["TRM mlp", "two datasets", "TRM attention", "HRM", "URM"],
)
def test_full_size_weights_of_another_repository_load_beside_its_config(tmp_path, experiment, values):
    """Under the published names. Of two datasets, the first one's puzzles come first in the table of embeddings."""
    shape = METADATA.model_dump(include={"seq_len", "vocab_size", "num_puzzle_identifiers"})
    expected = build_head(composed(experiment=experiment), "meta", **shape).state_dict()
    weights = {}
    for key, value in expected.items():
        dtype = torch.bfloat16 if key.endswith(("_init", "init_hidden")) else torch.float32  # as they save them
        weights[f"_orig_mod.{key}"] = torch.randn((), dtype=dtype).expand(value.shape)  # small on disk
    puzzles = METADATA.num_puzzle_identifiers * len(values.get("data_paths", [0]))
    weights["_orig_mod.model.inner.puzzle_emb.weights"] = torch.randn(puzzles, 512)
    torch.save(weights, tmp_path / "step_9")
    config = load_config(str(written(tmp_path, values)))
    head = load_model(tmp_path / "step_9", config, METADATA, batch_size=2, device=torch.device("cpu"))
    found = head.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, weights[f"_orig_mod.{key}"][: len(value)].to(value.dtype)), key


def test_a_checkpoint_of_trms_repository_is_evaluated(tmp_path):
    """The weights under its names and its config give what they give here."""
    pretrain_here(family_overrides("trm_sudoku", tmp_path / "ours", epochs=2))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    ours = yaml.safe_load((tmp_path / "ours/all_config.yaml").read_text())
    arch = {key: ours["arch"][key] for key in yaml.safe_load(TRM_CONFIG)["arch"] if key in ours["arch"]}
    trm = yaml.safe_load(TRM_CONFIG)
    arch |= {key: trm["arch"][key] for key in ("name", "H_layers", "no_ACT_continue")} | {"forward_dtype": "float32"}
    written(theirs, trm | {"arch": arch, "data_paths": [str(PIPELINE / "dataset")], "global_batch_size": 8})
    weights = {f"_orig_mod.{key}": value for key, value in load(tmp_path / "ours/step_10").items()}
    torch.save(weights, theirs / "step_10")
    found = [
        re.findall(r"eval/\w+ +\S+", here(evaluate.main, f"checkpoint={folder}/step_10", "device=cpu"))
        for folder in (tmp_path / "ours", theirs)
    ]
    assert found[0] == found[1]
    assert len(found[0]) > 5


def test_weights_have_the_published_names():
    """Of the full-size TRM models of the Sudoku and ARC recipes."""
    block = {"mlp.gate_up_proj.weight": (3072, 512), "mlp.down_proj.weight": (512, 1536)}
    mixing = {
        "trm_sudoku_mlp": {"mlp_t.gate_up_proj.weight": (1024, 97), "mlp_t.down_proj.weight": (97, 512)},
        "trm_arc_1": {"self_attn.qkv_proj.weight": (1536, 512), "self_attn.o_proj.weight": (512, 512)},
    }
    for name, own in mixing.items():
        shape = SHAPES[RECIPES[name][2]]
        vocab_size = shape["vocab_size"]
        head = build_head(composed(experiment=name), "meta", **shape)
        expected = {f"L_level.layers.{i}.{key}": shape for i in (0, 1) for key, shape in (block | own).items()} | {
            "embed_tokens.embedding_weight": (vocab_size, 512), "lm_head.weight": (vocab_size, 512),
            "q_head.weight": (2, 512), "q_head.bias": (2,), "H_init": (512,), "L_init": (512,),
            "puzzle_emb.weights": (METADATA.num_puzzle_identifiers, 512),
        }  # fmt: skip
        assert {key: tuple(value.shape) for key, value in head.state_dict().items()} == {
            f"model.inner.{key}": shape for key, shape in expected.items()
        }


# Random starts and noise


def eqr(**changes) -> tuple[PretrainConfig, TinyRecursiveModel, dict]:
    config = composed(*FAMILY["eqr_sudoku"], *(f"arch.{k}={v}" for k, v in changes.items()), experiment="eqr_sudoku")
    torch.manual_seed(0)
    model = build_head(config).model.eval()
    return config, model, next(random_batches(8))


def answers(model: TinyRecursiveModel, batch: dict, times: int = 1) -> list[torch.Tensor]:
    reasoner = Reasoner(model)
    return [step.logits for _ in range(times) for step in list(reasoner.steps(batch))]


@pytest.mark.parametrize("changes", [{}, {"noise": 0}, {"state_init": "fixed"}])
def test_an_evaluation_with_draws_repeats_and_leaves_those_of_training_alone(changes):
    _, model, batch = eqr(**changes)
    before = torch.get_rng_state()
    first = answers(model, batch, times=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = answers(model, batch, times=2)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[model.config.halt_max_steps])  # the second batch goes on with the stream


def test_without_draws_nothing_is_random():
    _, model, batch = eqr(noise=0, state_init="fixed")
    first, *_, second = answers(model, batch, times=2)[:: model.config.halt_max_steps]
    assert torch.equal(first, second)


def test_starts_are_drawn_for_each_row_and_position():
    _, model, _ = eqr()
    state = model.inner.initial_state(8)
    for z in (state.z_H, state.z_L):
        assert z.shape == (8, METADATA.seq_len, 32)
        assert z.flatten(0, 1).unique(dim=0).shape[0] == 8 * METADATA.seq_len
    draw = trunc_normal((200_000,), torch.float32, torch.device("cpu")).sort().values
    expected = trunc_normal_init_(torch.empty(200_000)).sort().values
    torch.testing.assert_close(draw, expected, rtol=0, atol=0.03)  # the same quantiles


def test_an_update_is_damped_and_noisy():
    """z ← (1 - λ) z + λ f(z + injection) + σ ε, over many elements."""
    _, model, _ = eqr(noise=0.5)
    inner = model.inner
    torch.manual_seed(1)
    z, injection = torch.randn(2, 8, METADATA.seq_len, 32)
    with torch.no_grad():
        noise = inner._update(z, injection, None) - (0.05 * z + 0.95 * inner.L_level(z, injection, None))
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.02)


def test_an_embedding_that_does_not_fit_is_refused():
    values = dict(experiment="trm_sudoku")
    with pytest.raises(UserError, match="do not hold a vector of puzzle_emb_ndim=512; set puzzle_emb_len=0"):
        composed("arch.hidden_size=32", "arch.puzzle_emb_ndim=512", "arch.puzzle_emb_len=2", **values)
    with pytest.raises(UserError, match="q_target"):
        composed("arch.q_target=every_step", **values)
