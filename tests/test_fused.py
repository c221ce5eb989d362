"""What makes passes without gradient faster changes no numbers: python -m pytest tests/test_fused.py

The kernels run in Triton's interpreter (tests/conftest.py), on the CPU, in float32 and float16: it has no products of
bfloat16.
"""

import importlib
import os
from importlib.util import find_spec
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from models import layers
from models.layers import RotaryEmbedding, SwiGLU, apply_rotary, rms_norm, sdpa, weights_cast
from tests.in_memory import build_head, composed, random_batches

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}  # relative to the size of the result
DTYPES = list(TOLERANCE)
WIDE = ("arch.hidden_size=128", "arch.num_heads=2", "arch.halt_max_steps=4", "global_batch_size=4")
MODELS = {
    "sudoku_extreme_1k": (*WIDE, "arch.H_layers=1", "arch.L_layers=1"),
    "trm_sudoku_mlp": (*WIDE, "arch.L_layers=1", "arch.H_cycles=2", "arch.L_cycles=1"),
    "urm_sudoku": (*WIDE, "arch.num_layers=1", "arch.H_cycles=2", "arch.L_cycles=1"),
}


@pytest.fixture(scope="module")
def fused():
    if find_spec("triton") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "pip install triton==3.6.0 (PyTorch for CUDA brings one)"
        )
    return importlib.import_module("models.fused")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 128, 249])
def test_swiglu(fused, dtype, rows):
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 128).to(dtype), (torch.randn(512, 128) / 128**0.5).to(dtype)
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=-1)
    assert difference(fused.swiglu(x, weight), F.silu(gate) * up) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "heads", "size"), [(82, 2, 64), (128, 1, 128), (17, 4, 32), (150, 1, 64)])
def test_attention(fused, dtype, length, heads, size):
    """150 positions take two blocks of queries and of keys."""
    torch.manual_seed(length)
    qkv = torch.randn(2, length, 3 * heads * size).to(dtype)
    tables = RotaryEmbedding(size, length + 3, 10000.0)()
    q, k, v = qkv.view(2, length, 3, heads, size).unbind(2)
    q, k = apply_rotary(q, tables), apply_rotary(k, tables)
    expected = sdpa(q.double(), k.double(), v.double()).reshape(2, length, heads * size)
    assert difference(fused.attention(qkv, *tables, heads), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [16, 97, 128])
def test_mix(fused, dtype, length):
    torch.manual_seed(length)
    x, mlp = torch.randn(2, length, 128).to(dtype), SwiGLU(length, 4.0).to(dtype)
    weights = (mlp.gate_up_proj.weight.detach(), mlp.down_proj.weight.detach())
    across = x.double().transpose(1, 2)
    expected = rms_norm(across + mlp.double()(across), 1e-5).transpose(1, 2)
    assert difference(fused.mix(x, *weights, 1e-5), expected.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("experiment", MODELS)
def test_a_model_with_the_kernels_computes_the_same(fused, monkeypatch, experiment):
    """Training, with its Q target where it has one, and evaluation; the kernels are called wherever they can be."""
    calls = {name: mock.Mock(wraps=getattr(fused, name)) for name in ("swiglu", "attention", "mix")}
    monkeypatch.setattr(torch.ops, "hrm", mock.Mock(**calls))
    monkeypatch.setattr(layers, "needs_no_gradient", lambda x: not torch.is_grad_enabled())
    monkeypatch.setattr("models.trm.needs_no_gradient", lambda x: not torch.is_grad_enabled())
    config = composed(*MODELS[experiment], experiment=experiment)
    torch.manual_seed(0)
    plain = build_head(config)
    monkeypatch.setattr("models.token_network.select_fused", lambda *_: True)
    ours = build_head(composed(*MODELS[experiment], "arch.fused=true", experiment=experiment))
    ours.load_state_dict(plain.state_dict())
    for training in (True, False):
        batches, results = random_batches(4), []
        batch = next(batches)
        for head in (plain, ours):
            head.train(training)
            torch.manual_seed(1)
            with torch.set_grad_enabled(training):
                carry = head.initial_carry(batch)
                for _ in range(2):
                    carry, loss, *_ = head(carry=carry, batch=batch)
            results.append((loss, carry.inner_carry))
        assert results[1][0].item() == pytest.approx(results[0][0].item(), rel=1e-5)
        for name, expected in vars(results[0][1]).items():
            assert difference(getattr(results[1][1], name), expected.double()) < 1e-5
    expected = {"sudoku_extreme_1k": {"swiglu", "attention"}, "trm_sudoku_mlp": {"swiglu", "mix"}}
    assert {name for name, call in calls.items() if call.called} == expected.get(experiment, {"attention"})


def test_a_cpu_does_not_use_the_kernels():
    assert not build_head(composed(*MODELS["trm_sudoku_mlp"], "arch.fused=true")).model.inner.fused


def test_a_broken_triton_is_warned_of(monkeypatch, caplog):
    layers.select_fused.cache_clear()
    monkeypatch.setattr(layers.importlib, "import_module", mock.Mock(side_effect=ImportError("no Triton\nhere")))
    assert not layers.select_fused("cuda", torch.bfloat16)
    assert caplog.messages == ["arch.fused does not work here, continuing without: ImportError: no Triton"]
    layers.select_fused.cache_clear()


def test_rotating_has_the_gradient_of_its_formula():
    torch.manual_seed(0)
    x, tables = torch.randn(2, 7, 3, 8, dtype=torch.double, requires_grad=True), RotaryEmbedding(8, 9, 100.0)()
    cos, sin = (table[:7].unsqueeze(-2) for table in tables)
    upstream = torch.randn(2, 7, 3, 8)
    (expected,) = torch.autograd.grad(layers._rotate(x.float(), cos, sin), x, upstream)
    (found,) = torch.autograd.grad(apply_rotary(x.float(), tables), x, upstream)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("experiment", MODELS)
def test_casting_weights_once_changes_nothing(monkeypatch, experiment):
    """Gradients and the next state, to the bit; after a step, or an error in it, nothing of the cast is left."""
    config = composed(*MODELS[experiment], "arch.forward_dtype=bfloat16", experiment=experiment)
    results = []
    for cast in (True, False):
        torch.manual_seed(0)
        head = build_head(config).train()
        if not cast:
            monkeypatch.setattr(layers.CastedLinear, "cast_weight", lambda self, dtype: self.weight.to(dtype))
        batch = next(random_batches(4))
        out = head(carry=head.initial_carry(batch), batch=batch)
        out.loss.backward()
        assert all(m.ready is None for m in head.modules() if isinstance(m, layers.CastedLinear))
        results.append([*(p.grad for p in head.parameters()), *vars(out.carry.inner_carry).values()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_cast_is_dropped_after_an_error():
    network = SwiGLU(16, 1.0)

    def fail() -> None:
        with weights_cast(network, torch.bfloat16):
            assert network.down_proj.ready.dtype == torch.bfloat16
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert network.down_proj.ready is None
