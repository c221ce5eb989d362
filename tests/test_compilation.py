"""When compiling pays, and that it changes no results: python -m pytest tests/test_compilation.py"""

import functools
import itertools

import pytest
import torch

from models.adam_atan2 import AdamATan2
from tests.in_memory import METADATA, TINY, build_head, composed, random_batches
from tests.launch import run
from tests.runs import TRAJECTORY, assert_lines_close, lines_with, read_metrics, reference_overrides
from training.compilation import EVALUATION, compile_blocks, compile_optimizers, pays
from training.distributed import Ranks
from training.step import create_state, train_step

CPU = torch.device("cpu")


def test_on_a_cpu_long_runs_and_large_models_are_compiled():
    """Hidden size 64 on 4×4 Sudokus, 128 on 9×9 ones, the full size; measured: see CPU_MIN_WORK."""
    narrow = ("global_batch_size=64", "arch.halt_max_steps=8", "arch.H_layers=2", "arch.L_layers=2")
    small = build_head(composed(*narrow, "arch.hidden_size=128", "arch.num_heads=4"), "meta")
    full = build_head(composed("global_batch_size=8"), "meta")
    narrowest = composed(*narrow, "arch.hidden_size=64", "arch.num_heads=2")
    four = build_head(narrowest, "meta", seq_len=16, vocab_size=6)
    for head, too_few, enough in ((four, 1000, 2560), (small, 50, 150), (full, 5, 50)):
        rows = head.model.data.batch_size
        assert not pays(head.model, CPU, too_few * rows)
        assert pays(head.model, CPU, enough * rows)
    assert not pays(small.model, CPU, EVALUATION * 5 * 16 * 64)  # five batches of a test split
    assert pays(small.model, torch.device("cuda"), 1)
    assert not pays(small.model, torch.device("mps"), 1e9)


@pytest.mark.parametrize(("mode", "disabled"), [("off", ""), ("on", "1"), ("auto", "")])
def test_a_short_run_is_not_compiled(monkeypatch, mode, disabled):
    monkeypatch.setenv("DISABLE_COMPILE", disabled)
    assert not compile_blocks(build_head(composed(*TINY)).model, mode, CPU, steps=20)


@pytest.mark.filterwarnings("error")
def test_trying_out_the_compiler_leaves_no_trace(monkeypatch):
    """Neither in the random draws, of a network that makes some in a step, nor in the gradients, nor in the output."""
    monkeypatch.setenv("DISABLE_COMPILE", "0")
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)  # stands in for the compiler
    model = build_head(composed(*TINY)).model
    tried, think = [], model.inner.think
    model.inner.think = lambda *embedded: (tried.append(torch.rand(1)), think(*embedded))[1]
    before = torch.get_rng_state()
    assert compile_blocks(model, "on", CPU, steps=20)
    assert len(tried) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("broken", [False, True])
def test_the_optimizer_is_compiled_in_long_runs_on_cuda_where_that_works(monkeypatch, caplog, broken):
    compiled = []

    def compile(function, **options):  # stands in for the compiler
        if broken:
            raise RuntimeError("no such operation\nsee the log")
        return lambda *args: compiled.append(len(args[0])) or function(*args)

    monkeypatch.setattr(torch, "compile", compile)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))  # there is no CUDA to try it out on
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    ours, other = AdamATan2(parameters), torch.optim.AdamW(parameters)
    cuda = torch.device("cuda")
    compile_optimizers([other, ours], CPU, 1e6)
    compile_optimizers([other], cuda, 1e6)
    compile_optimizers([other, ours], cuda, 1000)
    assert not compiled
    compile_optimizers([other, ours], cuda, 1e6)
    for p in parameters:
        p.grad = torch.ones_like(p)
    ours.step()
    assert compiled == ([] if broken else [1, 3])  # what is tried out, and the update
    warning = "the optimizer does not compile here, continuing without: no such operation"
    assert [warning] * broken == caplog.messages


@pytest.mark.apart
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_finds_what_was_tried_out_compiled(monkeypatch, dtype):
    """With and without gradient; a third graph is that of the last layer of the Q target."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setenv("DISABLE_COMPILE", "0")
    run = composed(*TINY, f"arch.forward_dtype={dtype}")
    state = create_state(run, METADATA, Ranks(0, 1, 0), CPU)
    graphs = torch._dynamo.utils.counters["stats"]
    torch.compiler.reset()
    before = graphs["unique_graphs"]
    assert compile_blocks(state.head.train().model, "on", CPU, steps=1e6)
    assert graphs["unique_graphs"] == before + 2
    for batch in itertools.islice(random_batches(run.global_batch_size), 2):
        train_step(state, batch, run)
    assert graphs["unique_graphs"] == before + 3


@pytest.mark.apart
def test_compiled_equals_eager(tmp_path):
    """Without PyTorch's own trial of the processor's vector instructions, a fifth of the cost."""
    overrides = reference_overrides(tmp_path / "run", compile="on", epochs=4)
    run("pretrain.py", *overrides, DISABLE_COMPILE="0", TORCHINDUCTOR_VEC_ISA_OK="1")
    # Only the lr schedule knows how long the run is: until the warm-up ends the steps are the reference run's.
    train = lines_with(read_metrics(tmp_path / "run"), "train/")
    assert_lines_close(train[:10], TRAJECTORY["train"][:10], rtol=1e-4)


@pytest.mark.apart
def test_a_compiler_that_fails_costs_a_warning_only(tmp_path):
    overrides = reference_overrides(tmp_path / "run", compile="on", epochs=4)
    done = run(
        "pretrain.py",
        *overrides,
        DISABLE_COMPILE="0",
        CXX=str(tmp_path / "compiler"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert "torch.compile does not work here, continuing without: " in done.stdout
    assert read_metrics(tmp_path / "run")[-1]["step"] == 20
