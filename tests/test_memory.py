"""Models that no memory can hold: python -m pytest tests/test_memory.py"""

import pytest
import torch
import yaml

from errors import UserError
from tests.in_memory import build_head, composed
from tests.launch import ROOT
from tests.runs import refusal
from training import memory
from training.config import ArchConfig, arch_config

GB = 10**9


def arch(**changes) -> ArchConfig:
    values = yaml.safe_load((ROOT / "config/arch/hrm_v1.yaml").read_text()) | {"puzzle_emb_ndim": 512}
    return arch_config(values | changes)


def build(given: ArchConfig, **shape: int) -> torch.nn.Module:
    return given.build(**dict(batch_size=8, seq_len=81, vocab_size=12, num_puzzle_identifiers=10) | shape)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"hidden_size": 10**7}, {}, r"gate_up_proj.weight, 53333504 × 10000000\): 38,400,\d\d\d.\d GB"),
        ({"hidden_size": 10**9}, {}, r"GB, but cpu has"),  # beyond 64 bits in all
        ({"expansion": 1e4, "H_layers": 50}, {}, r"gate_up_proj"),
        ({"puzzle_emb_ndim": 10**9}, {"num_puzzle_identifiers": 10**4}, r"puzzle_emb.weights, 10000 × 1000000000\)"),
        ({}, {"vocab_size": 10**9}, r"vocab_size=1000000000,.* needs memory .* × 512\): 4,096.1 GB, but cpu"),
        ({}, {"num_puzzle_identifiers": 10**12}, r"puzzle_emb.weights, 1000000000000 × 512\): 2,048,000.1 GB"),
        ({}, {"batch_size": 10**12}, r"local_weights, 1000000000000 × 512"),
        ({}, {"seq_len": 10**12}, r"rotary_emb.cos, 1000000000001 × 64"),
        ({"pos_encodings": "learned"}, {"seq_len": 10**11}, r"embed_pos.embedding_weight, 100000000001 × 512"),
    ],
)
def test_what_no_memory_can_hold_is_refused_before_it_is_built(changes, shape, message, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 40 * GB)
    with pytest.raises(UserError, match=message):
        build(arch(**changes), **shape)


def test_an_architecture_that_computes_with_values_is_refused_by_its_tensors(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: GB)

    def make() -> torch.nn.Module:
        scale = torch.ones(1).item()
        return torch.nn.Linear(10**5, 10**5 * int(scale))

    with (
        pytest.raises(UserError, match=r"it asks for a tensor of 100000 × 100000: 40.0 GB, but cpu has 1.0 GB to give"),
        memory.CheckedAllocations(torch.device("cpu"), make, "it"),
    ):
        make()


def test_asking_changes_no_number(monkeypatch):
    """The question draws nothing from the generator, whose state the weights come from."""
    states = []
    for worth_asking in (1, 1 << 60):
        monkeypatch.setattr(memory, "WORTH_ASKING", worth_asking)
        torch.manual_seed(1)
        states.append(build_head(composed("arch.hidden_size=32", "arch.num_heads=2")).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_what_fits_is_built(monkeypatch):
    needed = sum(p.numel() * 4 for p in build(arch(hidden_size=64)).state_dict().values())
    monkeypatch.setattr(memory, "WORTH_ASKING", 1)
    monkeypatch.setattr(memory, "available_memory", lambda device: 2 * needed)
    build(arch(hidden_size=64))
    monkeypatch.setattr(memory, "available_memory", lambda device: needed // 2)
    with pytest.raises(UserError, match="needs memory"):
        build(arch(hidden_size=64))


def test_training_needs_more_than_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "WORTH_ASKING", 1)
    monkeypatch.setattr(memory, "available_memory", lambda device: 400_000)
    line = refusal(capsys, tmp_path / "run")
    assert "training (gradients, two moments" in line and "cpu has 0.0 GB" in line
    assert not (tmp_path / "run").exists()


def test_more_epochs_than_can_be_shuffled(tmp_path, capsys):
    line = refusal(capsys, tmp_path / "run", epochs=2**31 - 1, eval_interval=2**31 - 1)
    assert "the order of 2147483647 epochs between evaluations: 687.2 GB" in line and "lower eval_interval" in line


def test_this_machine_says_what_it_has():
    there = memory.available_memory(torch.device("cpu"))
    assert there is not None and 10**8 < there < 10**15
    assert memory.available_memory(torch.device("meta")) is None
