"""The model, apart from the reference vectors: python -m pytest tests/test_hrm.py"""

import json
import math
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from errors import UserError
from models.act import ACTConfig, ACTModel, InnerNetwork
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1
from models.layers import ATTENTION_KERNELS, SwiGLU, sdpa, select_attention, trunc_normal_init_
from models.losses import ACTLossHead
from tests.reference_models import REFERENCE, Variant

SMALL = dict(
    batch_size=6, seq_len=16, vocab_size=6, num_puzzle_identifiers=9, puzzle_emb_ndim=32, hidden_size=32, num_heads=2,
    expansion=4, H_cycles=2, L_cycles=2, H_layers=1, L_layers=1, pos_encodings="rope", halt_max_steps=8,
    halt_exploration_prob=0.0, forward_dtype="float32",
)  # fmt: skip


def batch(size=6):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 6, (size, 16), dtype=torch.int32, generator=generator)
    return {"inputs": tokens, "labels": tokens, "puzzle_identifiers": torch.arange(size, dtype=torch.int32)}


@pytest.mark.parametrize("name", ["sudoku_extreme", "maze_30x30_hard", "arc_2"])
def test_published_checkpoints_fit(name):
    spec = json.loads((REFERENCE / "published_state_dict.json").read_text())[name]
    with torch.device("meta"):
        head = ACTLossHead(HierarchicalReasoningModel_ACTV1(spec["config"]), "stablemax_cross_entropy")
    ours = {key: list(value.shape) for key, value in head.state_dict().items()}
    assert ours == {key: shape for key, (shape, _) in spec["tensors"].items()}
    assert sum(p.numel() for p in head.parameters()) == spec["num_params"]


@pytest.mark.parametrize(("std", "dtype"), [(1.0, torch.float32), (0.02, torch.float32), (1.0, torch.bfloat16)])
def test_truncated_normal_has_the_stated_variance_and_shape(std, dtype):
    torch.manual_seed(0)
    drawn = trunc_normal_init_(torch.empty(1000, 1000, dtype=dtype), std).double().flatten()
    uncut = std / stats.truncnorm(-2, 2).std()
    assert abs(drawn.mean()) < 5e-3 * std
    assert drawn.std().item() == pytest.approx(std, rel=5e-3)
    assert drawn.abs().max() <= 2 * uncut * (1 + 2**-8)
    if dtype == torch.float32:
        assert stats.kstest(drawn[:100_000].numpy(), stats.truncnorm(-2, 2, scale=uncut).cdf).pvalue > 1e-3


def test_initial_weights_have_the_stated_scales():
    torch.manual_seed(0)
    model = HierarchicalReasoningModel_ACTV1(SMALL | dict(hidden_size=256, num_heads=4, pos_encodings="learned")).inner
    for name, parameter in model.named_parameters():
        if name.startswith("q_head"):
            continue
        expected = 1 / 16 if "embed" in name else parameter.shape[1] ** -0.5
        tolerance = 0.03 + 2 / math.sqrt(parameter.numel())
        assert parameter.std().item() == pytest.approx(expected, rel=tolerance), name
    assert not model.q_head.weight.any()
    assert (model.q_head.bias == -5).all()
    assert not model.puzzle_emb.weights.any()
    assert model.H_init.std().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(("expansion", "hidden", "width"), [(4, 512, 1536), (4, 32, 256), (2, 384, 512), (1, 384, 256)])
def test_swiglu_width(expansion, hidden, width):
    assert SwiGLU(hidden, expansion).down_proj.weight.shape == (hidden, width)


def test_halted_rows_take_new_data_and_the_others_keep_theirs():
    head = ACTLossHead(HierarchicalReasoningModel_ACTV1(SMALL), "stablemax_cross_entropy").train()
    first, second = batch(), {key: value.flip(0) for key, value in batch().items()}
    carry = head(carry=head.initial_carry(first), batch=first).carry
    assert carry.steps.tolist() == [1] * 6
    carry.halted = torch.tensor([True, False] * 3)
    carry = head(carry=carry, batch=second).carry
    assert carry.steps.tolist() == [1, 2] * 3
    assert torch.equal(carry.current_data["inputs"][::2], second["inputs"][::2])
    assert torch.equal(carry.current_data["inputs"][1::2], first["inputs"][1::2])


@dataclass
class Nothing:
    empty: torch.Tensor  # (B, 0)


class Oracle(InnerNetwork):
    """Has the Q values that it is told."""

    def initial_state(self, batch_size):
        return Nothing(torch.zeros(batch_size, 0))

    def forward(self, state, data):
        return state, torch.zeros(*data["inputs"].shape, self.vocab_size), self.q


class Halting(ACTModel):
    """ACT alone, around Q values (B,) of the test's choice."""

    Config = ACTConfig
    Inner = Oracle

    def __init__(self, q_halt, q_continue, **config):
        super().__init__(dict(batch_size=1, seq_len=1, vocab_size=2, num_puzzle_identifiers=1, **config))
        self.inner.vocab_size, self.inner.q = 2, (q_halt, q_continue)

    def halted_at(self, step):
        """Which sequences halt when this is their step number `step`."""
        data = {"inputs": torch.zeros(len(self.inner.q[0]), 1, dtype=torch.int32)}
        carry = self.initial_carry(data)
        before = replace(carry, steps=carry.steps + step - 1, halted=torch.zeros_like(carry.halted), current_data=data)
        after, _ = self.train()(before, data)
        assert (after.steps == step).all()
        return after.halted


def test_exploration_draws_a_minimum_number_of_steps():
    """With Q always in favour of halting, a sequence stops at 1 step, or with exploration at a uniform 2..max."""
    q = torch.ones(40_000)
    model = Halting(q, q - 1, halt_max_steps=8, halt_exploration_prob=0.25)
    torch.manual_seed(0)
    for n in range(1, 9):  # the minimum is ≤ n with probability (n - 1) / 7 where one is drawn
        share = model.halted_at(n).float().mean().item()
        assert share == pytest.approx(0.75 + 0.25 * (n - 1) / 7, abs=0.01)


def steps_until_halted(model, q_of_step):
    """How many steps each row takes, from a fresh carry; q_of_step[n] (B,) is Q(halt) in step n + 1, against 0."""
    data = {"inputs": torch.zeros(q_of_step.shape[1], 1, dtype=torch.int32)}
    carry, taken = model.train().initial_carry(data), torch.zeros(q_of_step.shape[1], dtype=torch.int64)
    for n, q in enumerate(q_of_step, 1):
        model.inner.q = (q, torch.zeros_like(q))
        carry, _ = model(carry, data)
        taken = torch.where((taken == 0) & carry.halted, n, taken)
    return taken


def test_extra_steps_are_drawn_when_a_row_first_wants_to_halt():
    """Rows that want to halt from step 3 on halt in step 3, 4, 5 or 6 equally often; the limit still holds."""
    rows = 20_000
    q = torch.tensor([-1.0, -1, 1, 1, 1, 1, 1, 1])[:, None].repeat(1, rows)
    for most, expected in ((8, {3: 0.25, 4: 0.25, 5: 0.25, 6: 0.25}), (5, {3: 0.25, 4: 0.25, 5: 0.5})):
        model = Halting(q[0], q[0], halt_max_steps=most, halt_exploration_prob=0, halt_extra_steps=3)
        torch.manual_seed(0)
        taken = steps_until_halted(model, q[:most])
        shares = {n: (taken == n).float().mean().item() for n in taken.unique().tolist()}
        assert shares == pytest.approx(expected, abs=0.02)


def test_a_row_that_changes_its_mind_while_it_waits_goes_on_until_it_wants_to_halt_again():
    q = torch.tensor([1.0, -1, -1, -1, 1, 1, 1, 1])[:, None].repeat(1, 20_000)
    model = Halting(q[0], q[0], halt_max_steps=8, halt_exploration_prob=0, halt_extra_steps=2)
    torch.manual_seed(0)
    taken = steps_until_halted(model, q)
    assert taken.unique().tolist() == [1, 5]  # halts at once, or after its doubts: no second wait is drawn
    assert (taken == 1).float().mean().item() == pytest.approx(1 / 3, abs=0.02)


def test_a_row_that_has_halted_draws_anew_for_its_next_sequence():
    q = torch.ones(9, 20_000)
    model = Halting(q[0], q[0], halt_max_steps=8, halt_exploration_prob=0, halt_extra_steps=2)
    torch.manual_seed(0)
    data = {"inputs": torch.zeros(20_000, 1, dtype=torch.int32)}
    carry, halts = model.train().initial_carry(data), 0
    for _ in range(9):
        model.inner.q = (q[0], torch.zeros_like(q[0]))
        carry, _ = model(carry, data)
        halts += carry.halted.float().mean().item()
    expected = [0.0]  # how often a row halts in n steps, if it takes 1, 2 or 3 steps each time
    for n in range(1, 10):
        expected.append(sum(1 + expected[n - taken] for taken in (1, 2, 3) if taken <= n) / 3)
    assert halts == pytest.approx(expected[9], abs=0.02)


def test_the_last_step_halts_whatever_q_says():
    q = torch.zeros(100)
    model = Halting(q, q + 1, halt_max_steps=3, halt_exploration_prob=0.5)
    assert [model.halted_at(n).float().mean() for n in (1, 2, 3)] == [0, 0, 1]


def test_a_network_without_q_continue_says_before_its_first_step_that_it_has_no_target():
    class Half(HierarchicalReasoningModel_ACTV1.Inner):
        HAS_Q_CONTINUE = False

    class Model(HierarchicalReasoningModel_ACTV1):
        Inner = Half

    with pytest.raises(UserError, match=r"Half has no Q\(continue\).*arch.q_target=off"):
        Model(SMALL | dict(q_target="every_step"))
    Model(SMALL | dict(q_target="off"))


def test_without_a_q_target_a_step_has_the_other_losses_only():
    losses = {}
    for q_target in ("every_step", "off"):
        torch.manual_seed(0)
        model = HierarchicalReasoningModel_ACTV1(SMALL | dict(q_target=q_target))
        head = ACTLossHead(model, "stablemax_cross_entropy").train()
        out = head(carry=head.initial_carry(batch()), batch=batch())
        losses[q_target == "every_step"] = out.metrics | {"total": out.loss.detach()}
    part = losses[True].pop("q_continue_loss")
    assert part > 0
    torch.testing.assert_close(losses[False].pop("total"), losses[True].pop("total") - 0.5 * part)
    torch.testing.assert_close(losses[False], losses[True])


@pytest.mark.parametrize(("q_target", "halts"), [("every_step", [0, 0, 1, 0, 1]), ("off", [0, 1, 1, 0, 0])])
def test_a_sequence_wants_to_halt_by_both_q_values_or_by_the_trained_one(q_target, halts):
    q_halt, q_continue = torch.tensor([-1.0, 1, 2, 0, -2]), torch.tensor([1.0, 2, -1, 0, -3])
    model = Halting(q_halt, q_continue, halt_max_steps=8, halt_exploration_prob=0, q_target=q_target)
    assert model.wants_to_halt(q_halt, q_continue).tolist() == [bool(halt) for halt in halts]
    assert model.halted_at(1).tolist() == [bool(halt) for halt in halts]


@pytest.mark.parametrize("q_target", ["every_step", "off"])
def test_a_sequence_can_be_made_to_halt_only_when_it_is_sure(q_target):
    sure = torch.tensor([0.1, 0.5, 0.89, 0.91, 0.99])
    q_halt = torch.logit(sure)
    model = Halting(
        q_halt, q_halt - 1, halt_max_steps=8, halt_exploration_prob=0, q_target=q_target, halt_confidence=0.9
    )
    assert model.halted_at(1).tolist() == (sure > 0.9).tolist()
    assert model.halted_at(8).all()


def test_evaluation_runs_all_steps_whatever_q_says():
    model = HierarchicalReasoningModel_ACTV1(SMALL).eval()
    with torch.no_grad():
        model.inner.q_head.bias.copy_(torch.tensor([9.0, -9.0]))
        carry = model.initial_carry(batch())
        for step in range(1, 9):
            carry, outputs = model(carry, batch())
            assert carry.halted.all() == (step == 8)
            assert "target_q_continue" not in outputs


@pytest.mark.parametrize("changes", [{}, {"pos_encodings": "learned", "H_layers": 2}, {"puzzle_emb_ndim": 0}])
def test_the_target_forward_has_the_q_values_of_the_whole_one(changes):
    torch.manual_seed(0)
    inner = HierarchicalReasoningModel_ACTV1(SMALL | changes).inner
    with torch.no_grad():
        inner.q_head.weight.normal_()
    data = batch()
    carry = inner.reset_carry(torch.ones(6, dtype=torch.bool), inner.empty_carry(6, torch.device("cpu")))
    for _ in range(2):
        values = inner.q_values(carry, data)
        carry, _, expected = inner(carry, data)
        for value, whole in zip(values, expected, strict=True):
            assert whole.std() > 0.1
            torch.testing.assert_close(value, whole, rtol=0, atol=1e-5)
    _, z = inner.think(carry, torch.zeros_like(carry.z_H), None, first_only=True)
    assert z.shape == (6, 1, 32)  # no more is computed of the last block than is looked at


def test_gradient_stops_at_the_last_cycle():
    """The gradient equals that of one L and one H update from a state that came without gradient (paper, section on
    the one-step approximation)."""
    model = HierarchicalReasoningModel_ACTV1(SMALL | dict(H_cycles=2, L_cycles=3)).inner
    data, carry = batch(), model.empty_carry(6, torch.device("cpu"))
    carry = model.reset_carry(torch.ones(6, dtype=torch.bool), carry)
    model(carry, data)[1].square().sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    seen, think = [], model.think
    model.think = lambda *embedded: seen.append(embedded) or think(*embedded)
    model(carry, data)
    ((_, x, cos_sin),) = seen
    z_H, z_L = carry.z_H, carry.z_L
    with torch.no_grad():
        for _ in range(3):
            z_L = model.L_level(z_L, z_H + x, cos_sin)
        z_H = model.H_level(z_H, z_L, cos_sin)
        for _ in range(2):
            z_L = model.L_level(z_L, z_H + x, cos_sin)
    z_H = model.H_level(z_H, model.L_level(z_L, z_H + x, cos_sin), cos_sin)
    model.lm_head(z_H)[:, 1:].square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad)


def test_bfloat16_stays_close_to_float32():
    variant = Variant("rope_stablemax")
    outputs = []
    for dtype in ("float32", "bfloat16"):
        head = variant.head(forward_dtype=dtype).eval()
        with torch.no_grad():
            _, out = head.model(head.initial_carry(variant.batch(0)), variant.batch(0))
        outputs.append(out["logits"].float())
        assert out["logits"].dtype == getattr(torch, dtype)
        assert out["q_halt_logits"].dtype == out["q_continue_logits"].dtype == torch.float32
    assert outputs[0].std() > 0.5
    torch.testing.assert_close(*outputs, rtol=0, atol=0.15)  # 8 bits of mantissa through 12 blocks


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 17, 4, 8, dtype=torch.float64)
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(8), dim=-1)
    torch.testing.assert_close(sdpa(q, k, v), torch.einsum("bhqk,bkhd->bqhd", weights, v))


def test_attention_choice():
    assert select_attention("auto", "cpu", torch.float32) is sdpa
    assert select_attention("auto", "cuda", torch.float32) is sdpa
    with pytest.raises(ValueError, match=", ".join(ATTENTION_KERNELS)):
        select_attention("nonsense", "cpu", torch.float32)


@pytest.mark.parametrize(("name", "module"), [("flash3", "flash_attn_interface"), ("flash2", "flash_attn")])
def test_a_flash_kernel_is_the_package_s(monkeypatch, name, module):
    """With a stand-in for the package, which needs CUDA; the newer one returns the log-sum-exp too."""
    asked = []

    def flash_attn_func(*qkv, causal):
        asked.append((*qkv, causal))
        return ("attended", "log-sum-exp") if name == "flash3" else "attended"

    monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_func=flash_attn_func))
    on_gpu = SimpleNamespace(is_cuda=True)
    assert select_attention(name, "cuda", torch.bfloat16)(on_gpu, "k", "v") == "attended"
    assert asked == [(on_gpu, "k", "v", False)]


@pytest.mark.parametrize("module", ["flash_attn_interface", "flash_attn"])
@pytest.mark.parametrize(
    "source",
    [
        "raise OSError('libcudart.so.11: cannot open shared object file')",
        "raise ImportError('undefined symbol: _ZN3c10')",
        "import a_module_that_is_not_there",
        "raise AttributeError('module torch has no attribute x')",
        "raise RuntimeError('built for another PyTorch')",
        "",  # imports, but has no such function
        "flash_attn_func = None",
        "def __getattr__(name): raise OSError('broken at the look-up')",
    ],
)
def test_a_broken_flash_package_is_passed_over(monkeypatch, tmp_path, caplog, module, source):
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    select_attention.cache_clear()
    try:
        for _ in range(2):
            assert select_attention("auto", "cuda", torch.bfloat16) is sdpa
        (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert warning.startswith(f"{module} is installed but broken (")
        name = "flash3" if module == "flash_attn_interface" else "flash2"
        with pytest.raises(UserError, match=rf"^arch.attention={name}: {module} does not work here \(.+\); use auto$"):
            select_attention(name, "cuda", torch.bfloat16)
    finally:
        sys.modules.pop(module, None)
        select_attention.cache_clear()


def test_a_flash_package_that_is_not_installed_is_no_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    select_attention.cache_clear()
    assert select_attention("auto", "cuda", torch.bfloat16) is sdpa
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    select_attention.cache_clear()


@pytest.mark.parametrize("ndim", [0, 1, 32, 33, 64])
def test_a_puzzle_embedding_takes_as_many_positions_as_it_needs(ndim):
    model = HierarchicalReasoningModel_ACTV1(SMALL | dict(puzzle_emb_ndim=ndim)).eval()
    assert model.inner.positions == 16 + math.ceil(ndim / 32)
    _, outputs = model(model.initial_carry(batch()), batch())
    assert outputs["logits"].shape == (6, 16, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_size=30, num_heads=4), "not divisible by num_heads"),
        (dict(hidden_size=18, num_heads=2), "even head size"),
        (dict(H_cycle=3), "H_cycle"),
        (dict(pos_encodings="alibi"), "pos_encodings"),
        (dict(halt_max_steps=0), "halt_max_steps"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalReasoningModel_ACTV1(SMALL | change)
