"""The kernel for TRM's mixing of positions, and casts of weights: python -m pytest tests/test_mixing.py

The kernel runs in Triton's interpreter (tests/conftest.py), on the CPU, in float32 and float16: it has no products of
bfloat16.
"""

import importlib
import os
import sys
from importlib.util import find_spec
from unittest import mock

import pytest
import torch

from benchmarks import mixing as benchmark
from models import layers, trm
from models.layers import RotaryEmbedding, SwiGLU, apply_rotary, weights_cast
from models.trm import MixerBlock
from tests.in_memory import FAMILY, build_head, composed, random_batches
from tests.launch import run

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}  # relative to the size of the result
ONE_TILE = (
    "arch.hidden_size=64",
    "arch.num_heads=2",
    "arch.halt_max_steps=4",
    "global_batch_size=2",
    "arch.L_layers=1",
)
ONE_TILE = (*ONE_TILE, "arch.H_cycles=2", "arch.L_cycles=1")


@pytest.fixture
def kernel():
    if find_spec("triton") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "pip install triton==3.6.0 (PyTorch for CUDA brings one)"
        )
    return importlib.import_module("models.mixing")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("positions", "hidden"), [(5, 64), (16, 128), (97, 192), (128, 64)])
def test_the_kernel_against_float64(kernel, dtype, positions, hidden):
    torch.manual_seed(positions)
    x, block = torch.randn(2, positions, hidden).to(dtype), MixerBlock(positions, hidden, 4.0, 1e-5)
    weights = [linear.weight.detach().to(dtype) for linear in (block.mlp_t.gate_up_proj, block.mlp_t.down_proj)]
    for linear, weight in zip((block.mlp_t.gate_up_proj, block.mlp_t.down_proj), weights, strict=True):
        linear.weight.data = weight.double()  # the rounded weights
    with torch.no_grad():
        expected = block.mixed(x.double())
    assert difference(kernel.mix(x, *weights, 1e-5), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_kernel_is_an_operator_that_the_compiler_can_trust(kernel, transposed):
    """Also of what is not contiguous, the weights included."""
    torch.manual_seed(0)
    x, block = torch.randn(2, 64, 16), MixerBlock(16, 64, 4.0, 1e-5)
    x = x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous()
    weights = [linear.weight.detach() for linear in (block.mlp_t.gate_up_proj, block.mlp_t.down_proj)]
    if transposed:
        weights = [weight.T.contiguous().T for weight in weights]
    torch.library.opcheck(kernel.mix, (x, *weights, 1e-5), test_utils=("test_schema", "test_faketensor"))
    with torch.no_grad():
        assert difference(kernel.mix(x, *weights, 1e-5), block.double().mixed(x.double())) < 2e-6


# In a process of its own, as the interpreter is chosen where Triton is imported. Prints bytes of shared memory.
COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from models.mixing import LAUNCH, TILE, _mix

constants = dict(D=512, W=512, BP=128, BD=TILE[0], BW=TILE[1])
types = {name: "*bf16" for name in ("x", "gate_up", "down", "out")} | dict(length="i32", eps="fp32")
aligned = {(number,): [["tt.divisibility", 16]] for number in range(4)}  # as PyTorch's tensors are
source = ASTSource(_mix, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
compiled = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=LAUNCH)
assert b"_mix" in compiled.asm["cubin"]
print(compiled.metadata.shared)
"""


@pytest.mark.apart
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227)])
def test_the_kernel_compiles_to_machine_code(kernel, tmp_path, capability, shared):
    """For A100s and H100s, which have so many KiB of shared memory for a block; no GPU is needed for that."""
    compiled = run("-c", COMPILE, str(capability), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert 0 < int(compiled.stdout) <= 2**10 * shared


@pytest.mark.parametrize(("hidden", "width", "length"), [(96, 128, 16), (64, 96, 16), (64, 128, 15)])
def test_the_kernel_refuses_what_it_is_not_made_for(kernel, hidden, width, length):
    with pytest.raises(AssertionError):
        kernel.mix(torch.zeros(1, 16, hidden), torch.zeros(2 * width, length), torch.zeros(length, width), 1e-5)


def test_the_kernel_is_for_passes_without_gradient_on_a_gpu():
    block, gpu = MixerBlock(97, 64, 4.0, 1e-5, triton=True), mock.Mock(is_cuda=True)
    assert not block.uses_triton(gpu)
    with torch.no_grad():
        assert block.uses_triton(gpu)
        assert not block.uses_triton(mock.Mock(is_cuda=False))
        assert not MixerBlock(97, 64, 4.0, 1e-5).uses_triton(gpu)


def test_the_tile_divides_what_the_kernel_is_used_for(kernel):
    assert trm.CHANNELS % kernel.TILE[0] == 0 and 256 % kernel.TILE[1] == 0  # SwiGLU's width is a multiple of 256


def test_a_model_with_the_kernel_computes_the_same(kernel, monkeypatch):
    """In training and evaluation, where no gradient is recorded; the rest of a training step stays PyTorch's."""
    config = composed(*ONE_TILE, experiment="trm_sudoku_mlp")
    torch.manual_seed(0)
    plain, ours, calls = build_head(config), build_head(config), []
    ours.load_state_dict(plain.state_dict())
    mix = kernel.mix

    def called(x, *rest):
        calls.append(torch.is_grad_enabled())
        return mix(x, *rest)

    for block in ours.model.inner.L_level.layers:
        monkeypatch.setattr(block, "uses_triton", lambda x: not torch.is_grad_enabled())
    monkeypatch.setattr(torch.ops, "hrm", mock.Mock(mix=called))
    batch = next(random_batches(2))
    for training in (True, False):
        results = []
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
            assert difference(getattr(results[1][1], name), expected) < 1e-5
    assert calls == [False] * (2 * 2 + 2 * 4)  # one round of two updates without gradient, then two of them


@pytest.fixture
def a_gpu(monkeypatch):
    """Says that there is an H100, where the kernel works."""
    trm.select_mixing.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    loaded = mock.Mock()
    monkeypatch.setattr(trm.importlib, "import_module", loaded)
    yield loaded
    trm.select_mixing.cache_clear()


@pytest.mark.parametrize(
    ("name", "device", "dtype", "capability", "used"),
    [
        ("auto", "cuda", torch.bfloat16, 9, True),
        ("auto", "cuda", torch.bfloat16, 8, False),  # not measured there
        ("triton", "cuda", torch.bfloat16, 8, True),
        ("triton", "cuda", torch.float32, 9, False),
        ("triton", "cpu", torch.bfloat16, 9, False),  # a model that was trained on a GPU, elsewhere
        ("triton", "meta", torch.bfloat16, 9, False),
        ("torch", "cuda", torch.bfloat16, 9, False),
    ],
)
def test_where_the_kernel_is_used(a_gpu, monkeypatch, name, device, dtype, capability, used):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    assert trm.select_mixing(name, device, dtype) == used
    assert a_gpu.called == used


def test_a_kernel_that_does_not_work_is_warned_of(a_gpu, caplog):
    a_gpu.side_effect = ImportError("no Triton\nhere")
    assert not trm.select_mixing("auto", "cuda", torch.bfloat16)
    assert caplog.messages == [
        "the kernel for mlp_t does not work here, continuing with PyTorch's: ImportError: no Triton"
    ]


@pytest.mark.parametrize(("positions", "hidden", "fits"), [(97, 512, True), (129, 512, False), (97, 96, False)])
def test_sizes_that_the_kernel_is_not_made_for_are_left_to_pytorch(positions, hidden, fits):
    assert MixerBlock(positions, hidden, 1.0, 1e-5, triton=True).triton == fits


@pytest.mark.parametrize(("name", "warned"), [("triton", True), ("auto", False)])
def test_a_kernel_that_was_asked_for_and_does_not_fit_is_warned_of(monkeypatch, caplog, name, warned):
    monkeypatch.setattr(trm, "select_mixing", lambda *_: True)
    build_head(composed(*ONE_TILE, "arch.hidden_size=96", f"arch.mixing={name}", experiment="trm_sudoku_mlp"))
    assert any("arch.mixing=triton is not used" in message for message in caplog.messages) == warned


def test_the_benchmark_at_toy_size(kernel, monkeypatch, capsys):
    before = (kernel.TILE, kernel.LAUNCH)
    monkeypatch.setattr(sys, "argv", ["mixing", "--toy", "--device", "cpu", "--repeats", "1"])
    benchmark.main()
    kernel.TILE, kernel.LAUNCH = before
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| (2, 97, 128)")]
    assert [row[1] for row in rows] == ["PyTorch", "128 × 64, 4 warps, 2 ahead"]
    assert all(0 < float(row[4].strip("| ")) < 1e-3 for row in rows)


def test_rotating_has_the_gradient_of_its_formula():
    torch.manual_seed(0)
    x, tables = torch.randn(2, 7, 3, 8, requires_grad=True), RotaryEmbedding(8, 9, 100.0)()
    cos, sin = (table[:7].unsqueeze(-2) for table in tables)
    upstream = torch.randn(2, 7, 3, 8)
    (expected,) = torch.autograd.grad(layers._rotate(x, cos, sin), x, upstream)
    (found,) = torch.autograd.grad(apply_rotary(x, tables), x, upstream)
    assert torch.equal(found, expected)


def test_tables_that_are_learned_have_gradients():
    torch.manual_seed(0)
    x, tables = torch.randn(2, 7, 3, 8), [table.requires_grad_() for table in RotaryEmbedding(8, 7, 100.0)()]
    for gradient in torch.autograd.grad(apply_rotary(x, tables).square().sum(), tables):
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("experiment", FAMILY)
def test_casting_weights_once_changes_nothing(monkeypatch, experiment):
    """Gradients and the next state, to the bit; after a step nothing of the cast is left."""
    config = composed(*FAMILY[experiment], "arch.forward_dtype=bfloat16", experiment=experiment)
    results = []
    for cast in (True, False):
        torch.manual_seed(0)
        head = build_head(config).train()
        if not cast:
            monkeypatch.setattr(layers.CastedLinear, "cast_weight", lambda self, dtype: self.weight.to(dtype))
        batch = next(random_batches(config.global_batch_size))
        out = head(carry=head.initial_carry(batch), batch=batch)
        out.loss.backward()
        assert all(m.ready is None for m in head.modules() if isinstance(m, layers.CastedLinear))
        results.append([*(p.grad for p in head.parameters()), *vars(out.carry.inner_carry).values()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_what_is_cast_is_used(monkeypatch):
    """In HRM each of the blocks' weights is cast once for the two passes of a step, and its heads are left alone."""
    head = build_head(composed(*FAMILY["sudoku_extreme_1k"], "arch.forward_dtype=bfloat16"))
    inner, seen = head.model.inner, []
    with torch.no_grad(), inner.cast_once():
        seen = [name for name, m in inner.named_modules() if isinstance(m, layers.CastedLinear) and m.ready is not None]
        assert all(inner.get_submodule(name).cast_weight(torch.bfloat16).dtype == torch.bfloat16 for name in seen)
        assert inner.get_submodule(seen[0]).cast_weight(torch.float64).dtype == torch.float64
    assert {name.split(".")[0] for name in seen} == {"H_level", "L_level"} and len(seen) == 2 * 4


def test_a_cast_that_fails_leaves_nothing(monkeypatch):
    network, to, fits = SwiGLU(16, 1.0), torch.Tensor.to, iter([True, False])

    def to_with_little_memory(tensor, dtype):
        if not next(fits):
            raise MemoryError
        return to(tensor, dtype)

    monkeypatch.setattr(torch.Tensor, "to", to_with_little_memory)
    with pytest.raises(MemoryError), weights_cast(network, torch.bfloat16):
        pass
    assert network.gate_up_proj.ready is None


def test_a_cast_is_dropped_after_an_error():
    network = SwiGLU(16, 1.0)

    def fail() -> None:
        with weights_cast(network, torch.bfloat16):
            assert network.down_proj.ready.dtype == torch.bfloat16
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert network.down_proj.ready is None
