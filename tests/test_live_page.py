"""hrm_live.html in headless Chromium: python -m pytest tests/test_live_page.py

Pages are built from small models with random weights. What their network computes is compared with PyTorch in float32,
with the checkpoint's weights and with the same weights rounded to the 16 bits that a page holds.
"""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dataset import build_sudoku_dataset
from models.losses import ACTLossHead
from puzzles.kind import find_kind
from scripts import build_live_page
from tests.in_memory import TINY, TINY_TRM, composed
from tests.launch import ROOT
from tests.runs import here
from tests.sample_datasets import Arrays, build_maze
from training.checkpoints import load_model, load_model_alone
from training.config import load_config
from training.reasoning import reasoning_steps

PAGE = ROOT / "hrm_live.html"
CPU = torch.device("cpu")
PUZZLES, FEW, STEPS, ATOL = 200, 8, 3, 1e-3
WIDTHS = ("arch.hidden_size=32", "arch.num_heads=2", f"arch.halt_max_steps={STEPS}")
NO_PREFIX = "arch.puzzle_emb_ndim=0"
# Every architecture, kind of position and of puzzle embedding, and rule of halting: experiment, changes
MODELS = {
    "hrm": ("sudoku_extreme_1k", (*TINY, "arch.H_cycles=1", "arch.puzzle_emb_ndim=40")),
    "trm": ("trm_sudoku", (*TINY_TRM, "arch.H_cycles=1", "arch.puzzle_emb_len=3", "arch.damping=0.9")),
    "trm mlp": (
        "trm_sudoku_mlp",
        (*TINY_TRM, "arch.H_cycles=1", "arch.puzzle_emb_len=0", NO_PREFIX, "arch.halt_confidence=0.8"),
    ),
    "urm": ("urm_sudoku", (*WIDTHS, "arch.num_layers=1", "arch.H_cycles=1", "arch.L_cycles=2")),
    "transformer": (
        "transformer_sudoku",
        (*WIDTHS, "arch.num_layers=2", "arch.num_heads=4", "arch.pos_encodings=learned", NO_PREFIX),
    ),
}
# What the page's network makes of puzzles: answers and, of the first few, logits and Q values, of every step
COMPUTE = """
const [puzzles, steps, few, kind, done] = arguments;
const network = createNetwork(data.network, weights(), kind ?? undefined), vocab = data.network.vocab;
const before = performance.now();
const found = puzzles.map((puzzle, i) => {
  network.start(puzzle);
  return Array.from({ length: steps }, () => {
    const { logits, halt, goOn, wantsToHalt } = network.step();
    const answer = puzzle.map((_, cell) => {
      const own = Array.from(logits.subarray(cell * vocab, (cell + 1) * vocab));
      return own.indexOf(Math.max(...own));
    });
    return { answer, wantsToHalt, ...(i < few ? { logits: Array.from(logits), q: [halt, goOn] } : {}) };
  });
});
done({ found, kind: network.kind, ms: (performance.now() - before) / (puzzles.length * steps) });
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[int, Path]:
    """Size -> a dataset of generated Sudokus."""
    folder = tmp_path_factory.mktemp("sudokus")
    for size, count in ((4, 24), (6, PUZZLES), (9, 4)):
        config = build_sudoku_dataset.SudokuConfig(
            generate=True, size=size, num_train=4, num_test=count, output_dir=folder / str(size), seed=size
        )
        build_sudoku_dataset.build(config)
    return {size: folder / str(size) for size in (4, 6, 9)}


def save_run(folder: Path, data_path: Path, experiment: str, *changes: str, halting: bool = True) -> Path:
    """-> a checkpoint with random weights; with `halting`, its Q head halts at some steps of some puzzles."""
    config = composed(f"data_path={data_path}", *changes, experiment=experiment)
    folder.mkdir(parents=True)
    (folder / "all_config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    metadata = build_live_page.dataset_at_hand(data_path)[0]
    torch.manual_seed(11)
    head = config.arch.build_for(metadata, batch_size=8, device=CPU)
    inner = head.model.inner
    with torch.no_grad():
        if inner.puzzle_emb is not None:
            inner.puzzle_emb.weights.normal_()
        if halting:
            inner.q_head.weight.normal_()
            inner.q_head.bias.zero_()
            above = head.model.halts_above
            steps = run(head, torch.from_numpy(Arrays(data_path, "test").inputs[:32]))
            leads = torch.stack([step.q_halt - (step.q_continue if above is None else above) for step in steps])
            inner.q_head.bias[0] -= leads.quantile(0.75)
    torch.save(head.state_dict(), folder / "step_1")
    return folder / "step_1"


def run(head: ACTLossHead, inputs: torch.Tensor) -> list:
    return list(reasoning_steps(head.model, inputs.int(), torch.zeros(len(inputs), dtype=torch.int32)))


def load(checkpoint: Path) -> ACTLossHead:
    config = load_config(str(checkpoint.parent / "all_config.yaml"))
    metadata = build_live_page.dataset_at_hand(Path(config.data_path))[0]
    return load_model(checkpoint, config, metadata, batch_size=8, device=CPU)


def build(checkpoint: Path, **options) -> Path:
    page = checkpoint.parent / "live.html"
    here(build_live_page.main, f"checkpoint={checkpoint}", f"out={page}", *(f"{k}={v}" for k, v in options.items()))
    return page


@pytest.fixture
def live(browser):
    """A page of this kind, not loaded yet; a message on the console fails the test."""
    from selenium.webdriver.common.keys import Keys

    from tests.browser import Page

    class LivePage(Page):
        KEYS = Keys

        def open(self, path: Path, puzzle: str = "", width: int = 1280, height: int = 900) -> "LivePage":
            self.resize(width, height)
            self.browser.get("about:blank")
            self.browser.get(path.as_uri() + (f"#{puzzle}" if puzzle else ""))
            self.settle()
            self.js("setPlaying(false); go(0)")
            return self

        def settle(self) -> None:
            self.wait(lambda: self.js("return state.steps.length === state.wanted"), "the network does not end")

        def board(self) -> str:
            return "".join(text[:1] or "." for text in self.texts("#board .square-cell > span"))

        def marked(self, kind: str) -> list[int]:
            script = "return cellNodes.flatMap((node, i) => node.classList.contains(arguments[0]) ? [i] : [])"
            return self.js(script, kind)

        def paste(self, text: str) -> None:
            script = """
            const clipboardData = new DataTransfer();
            clipboardData.setData("text", arguments[0]);
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));"""
            self.js(script, text)
            self.settle()

        def compute(self, puzzles: np.ndarray, steps: int, few: int = FEW, kind: str | None = None) -> dict:
            self.browser.set_script_timeout(120)
            return self.browser.execute_async_script(COMPUTE, puzzles.tolist(), steps, few, kind)

    yield from LivePage.checked(browser)


# ---------- What it computes ----------


def compare(live, head: ACTLossHead, inputs: np.ndarray, atol: float = ATOL) -> tuple[dict, dict[str, int]]:
    """Hold the page's logits and Q values of every step against a PyTorch model's, for the first few puzzles.

    -> what the page computed, and in how many puzzles the answer of a step, the last answer, and the wish to halt
    differ.
    """
    expected = run(head, torch.from_numpy(inputs))
    computed = live.compute(inputs, len(expected))
    for row, puzzle in enumerate(computed["found"][:FEW]):
        for mine, step in zip(puzzle, expected, strict=True):
            np.testing.assert_allclose(mine["logits"], step.logits[row].flatten().numpy(), atol=atol)
            q = [float(step.q_halt[row]), float(step.q_continue[row])]  # without Q(continue), 0
            np.testing.assert_allclose(mine["q"], q if q[1] else [q[0], mine["q"][1]], atol=atol)
    answers = np.array([[step["answer"] for step in puzzle] for puzzle in computed["found"]])  # (n, steps, cells)
    wants = np.array([[step["wantsToHalt"] for step in puzzle] for puzzle in computed["found"]])
    wrong = (answers != np.stack([step.answer.numpy() for step in expected], 1)).any(-1)
    halts = wants != np.stack([step.wants_to_halt.numpy() for step in expected], 1)
    apart = {"steps": wrong.any(1).sum(), "answers": wrong[:, -1].sum(), "halting": halts.any(1).sum()}
    return computed | {"wants": wants}, apart


def rounded(checkpoint: Path) -> ACTLossHead:
    """The checkpoint's model with the weights that a page holds."""
    head = load(checkpoint)
    build_live_page.round_weights(head)
    return head


@pytest.mark.parametrize("name", MODELS)
def test_the_page_computes_what_pytorch_does(live, datasets, tmp_path, name):
    """With the same rounded weights: logits of every step, and the answers and halting of 200 puzzles exactly."""
    experiment, changes = MODELS[name]
    checkpoint = save_run(tmp_path / "run", datasets[6], experiment, *changes)
    live.open(build(checkpoint, examples=8))
    computed, apart = compare(live, rounded(checkpoint), Arrays(datasets[6], "test").inputs)
    print(f"{name}: {computed['ms']:.2f} ms a step ({computed['kind']})")
    assert not any(apart.values()), apart
    assert 0.05 < computed["wants"].mean() < 0.95, "the Q head was to halt at some"


@pytest.mark.apart
def test_the_page_in_the_repository(live, datasets):
    """It is made of today's sources, and computes what its checkpoint does, rounded to 16 bits and not."""
    page, weights = taken_apart(PAGE.read_text())
    assert build_live_page.assemble(page, weights) == PAGE.read_bytes(), "build the page again (docs/live-page.md)"
    checkpoint = ROOT / "pretrained" / page["model"]["checkpoint"]
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    inputs = Arrays(datasets[page["size"]], "test").inputs
    heads = [load_model_alone(checkpoint, run, inputs.shape[1], CPU, None) for _ in range(2)]
    build_live_page.round_weights(heads[0])
    live.open(PAGE)
    (computed, rounded), (_, as_trained) = (compare(live, head, inputs, atol=1e-2) for head in heads)
    print(f"{computed['ms']:.1f} ms a step; of {len(inputs)} puzzles {as_trained['answers']} end otherwise unrounded")
    assert not any(rounded.values()), rounded


def taken_apart(page: str) -> tuple[dict, bytes]:
    """-> what `assemble` put in."""
    data, weights = (
        re.search(f'<script type="[a-z/]+" id="{name}">(.*?)</script>', page)[1] for name in ("data", "weights")
    )
    return json.loads(data), base64.b64decode(weights)


@pytest.mark.parametrize("size", [4, 9])
def test_every_size_in_every_browser(live, datasets, tmp_path, size):
    """Without WebAssembly, without its SIMD, and with fused multiply-adds: the same logits."""
    experiment, changes = MODELS["transformer" if size == 9 else "trm mlp"]
    checkpoint = save_run(tmp_path / "run", datasets[size], experiment, *changes)
    live.open(build(checkpoint, examples=4, puzzles=3))
    inputs = Arrays(datasets[size], "test").inputs[:3]
    expected = run(rounded(checkpoint), torch.from_numpy(inputs))
    for kind in ("plain", "simd", "relaxed"):
        computed = live.compute(inputs, len(expected), kind=kind)
        assert computed["kind"] == kind
        for row, puzzle in enumerate(computed["found"]):
            for mine, step in zip(puzzle, expected, strict=True):
                np.testing.assert_allclose(mine["logits"], step.logits[row].flatten().numpy(), atol=ATOL)
    assert len(live.texts("#pad button")) == size + 1 and len(live.board()) == size * size


def test_a_step_of_a_larger_model_is_quick(live, datasets, tmp_path):
    """Width 128, 42 passes through a block in a step; the time is printed, since others use this machine too."""
    cycles = ("arch.hidden_size=128", "arch.halt_max_steps=1", "arch.H_cycles=3", "arch.L_cycles=6", "arch.L_layers=2")
    checkpoint = save_run(
        tmp_path / "run", datasets[6], "trm_sudoku_mlp", *TINY_TRM, *cycles, NO_PREFIX, "arch.puzzle_emb_len=0",
        halting=False,
    )  # fmt: skip
    live.open(build(checkpoint, examples=1))
    inputs = Arrays(datasets[6], "test").inputs[:1]
    for kind, steps, most in ((None, 20, 500), ("plain", 2, 5000)):
        computed = live.compute(inputs, steps, kind=kind)
        print(f"width 128: {computed['ms']:.1f} ms a step ({computed['kind']})")
        assert computed["ms"] < most


# ---------- What it shows ----------


@pytest.fixture(scope="module")
def page_4x4(datasets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    return build(save_run(folder / "run", datasets[4], "transformer_sudoku", *WIDTHS, "arch.num_layers=1", NO_PREFIX))


SOLVED = "1234341221434321"
PUZZLE = "1..434.2.14.4..1"


def test_a_pasted_puzzle_is_stepped_through(live, page_4x4):
    live.open(page_4x4)
    live.paste(" 1 . | . 4\n 3 4 | . 2\n----+----\n . 1 | 4 0\n 4 . | . 1")
    assert live.board() == PUZZLE and live.text("#where") == "The puzzle"
    assert live.find("#text").get_attribute("value") == PUZZLE and not live.visible("#notice")
    tokens = np.array([[1 if character == "." else int(character) + 1 for character in PUZZLE]])
    (steps,) = live.compute(tokens, STEPS)["found"]
    before = [token - 1 for token in tokens[0]]
    halt = next((i + 1 for i, step in enumerate(steps) if step["wantsToHalt"]), None)
    for number, step in enumerate(steps, start=1):
        live.press(live.KEYS.ARROW_RIGHT, shift=True)
        assert live.text("#where") == f"Step {number} of {STEPS}"
        answer = [max(0, token - 1) for token in step["answer"]]
        assert live.board() == "".join(str(digit or ".") for digit in answer)
        changed = [i for i, digit in enumerate(answer) if digit != before[i]]
        assert live.marked("changed") == (changed if number > 1 else [])
        sure = 100 / (1 + np.exp(-step["q"][0]))
        assert abs(float(re.sub("[^0-9]", "", live.text("#sure"))) - sure) <= 1
        assert live.visible("#halt") == (halt is not None and number >= halt)
        before = answer
    marks = live.js("return [...document.querySelectorAll('#bars i')].findIndex(bar => bar.classList.contains('halt'))")
    assert marks == (halt or -1)
    live.press(live.KEYS.ARROW_LEFT, shift=True)
    assert live.text("#where") == f"Step {STEPS - 1} of {STEPS}"
    live.set("#step", 1)
    assert live.text("#where") == f"Step 1 of {STEPS}" and live.text("#verdict")[0] in "✓✗"


def test_the_verdict_is_that_of_the_rules(live, page_4x4):
    """A solved board that the network is made to answer, and boards that break a rule."""
    live.open(page_4x4, PUZZLE)
    answer = "state.steps[0] = { ...state.steps[0], answer: [...arguments[0]].map(Number) }; go(1)"
    live.js(answer, SOLVED)
    assert live.text("#verdict").startswith("✓ Solved") and not live.marked("wrong")
    live.js(answer, "1" + SOLVED[1:-1] + "2")
    assert live.text("#verdict") == (
        "✗ Not solved: 1 clue has been changed; row 4 has two 2s; and 2 more. 1 cell wrong."
    )
    assert live.marked("wrong") == [7, 10 + 3, 15] or 15 in live.marked("wrong")


def test_typing_moving_and_erasing(live, page_4x4):
    live.open(page_4x4)
    live.find("#clear").click()
    live.settle()
    assert live.board() == "." * 16 and "empty" in live.text("#notice")
    live.js("cellNodes[5].click(); cellNodes[5].focus()")
    keys = live.KEYS
    live.press("3", keys.ARROW_RIGHT, "4", keys.ARROW_DOWN, "9", "2", keys.ARROW_LEFT, "1", keys.ARROW_UP, keys.DELETE)
    live.settle()
    assert live.board() == "......4..12....."
    assert "more than one solution" in live.text("#notice")
    live.js("document.querySelectorAll('#pad button')[2].click()")  # the 3, where the focus was last
    live.settle()
    assert live.board() == ".....34..12....."


@pytest.mark.parametrize(
    ("puzzle", "says", "marked"),
    [
        ("11..............", "row 1 already has the 1 more than once", [0, 1]),
        ("123....4........", "no solution", []),
        ("1...............", "more than one solution", []),
        ("................", "board is empty", []),
        (PUZZLE, "", []),
    ],
)
def test_puzzles_that_are_none(live, page_4x4, puzzle, says, marked):
    live.open(page_4x4, puzzle)
    assert live.board() == puzzle
    assert live.visible("#notice") == bool(says) and says in live.text("#notice")
    assert live.marked("wrong") == marked


@pytest.mark.parametrize(
    ("text", "says"),
    [("123", "3 of 16 cells"), ("1" * 17, "17 of 16 cells"), ("x" + "1" * 15, "“x” is no cell"), ("5" * 16, "1 to 4")],
)
def test_a_text_that_is_no_puzzle(live, page_4x4, text, says):
    live.open(page_4x4, PUZZLE)
    live.paste(text)
    assert says in live.text("#text-error") and live.board() == PUZZLE


@pytest.mark.parametrize(("address", "says"), [("123", "That is 3 of 16"), ("%", "“%” is no cell"), ("", "")])
def test_an_address_that_holds_no_puzzle(live, page_4x4, address, says):
    live.open(page_4x4, address)
    assert live.text("#text-error").startswith(says) and bool(says) == bool(live.text("#text-error"))
    assert live.board() == live.js("return data.puzzles[0].text")


def test_the_address_is_that_of_the_puzzle_in_view(live, page_4x4):
    """A link to it, which a reload keeps; whoever changes it is followed."""
    live.open(page_4x4, PUZZLE)
    live.js("setPlaying(false); go(0); location.hash = arguments[0]", SOLVED)
    live.wait(lambda: live.js("return rules.write(state.clues)") == SOLVED, "another address is not read")
    live.js("location.hash = '12'")
    live.wait(lambda: live.text("#text-error").startswith("That is 2 of 16"), "a wrong address is not refused")
    assert live.js("return rules.write(state.clues)") == SOLVED
    live.find("#clear").click()
    assert live.js("return location.hash") == "#" + "." * 16
    live.browser.refresh()
    live.settle()
    assert live.js("return rules.write(state.clues)") == "." * 16


def test_a_clue_that_the_network_has_changed_is_its_own_answer(live, page_4x4):
    live.open(page_4x4, PUZZLE)
    changed = "state.steps[0] = { ...state.steps[0], answer: [...arguments[0]].map(Number) }; go(1); choose(0)"
    live.js(changed, "2" + SOLVED[1:])
    assert re.match(r"Row 1, column 1 — 2: \d+ %", live.text("#cell").replace("under ", ""))
    assert live.text("#changes") == f"Fills {PUZZLE.count('.')} cells at once"
    live.js("choose(3)")
    assert live.text("#cell") == "Row 1, column 4 — given"


def test_an_empty_answer_has_its_own_probability(live, page_4x4):
    """And whatever else it gives 10 % or more is in the cell."""
    live.open(page_4x4, PUZZLE)
    live.js("""
      data.network.link = "softmax";
      const logits = new Float32Array(16 * 6).fill(-9);
      logits.set([.01, .35, .21, .2, .15, .08].map(Math.log), 6);
      state.steps[0] = readStep({ logits, halt: 0, wantsToHalt: false, ms: 1 });
      go(1); choose(1);
    """)
    assert live.text("#cell") == "Row 1, column 2 — empty: 35 % · 1: 21 % · 2: 20 % · 3: 15 %"
    assert live.js("return cellNodes[1].querySelector('small').textContent") == "123"


@pytest.mark.parametrize(("count", "right"), [(30, 0), (2, 0), (30, 40), (30, 20), (1, 1), (60, 33)])
def test_there_are_as_many_puzzles_as_are_asked_for(count, right):
    n, rng = 40, np.random.default_rng(right)
    solved, kind = np.arange(n) < right, find_kind("sudoku")(4, 4)
    revisions, inputs = rng.integers(0, 4, n), np.ones((n, 16), np.uint8)
    tried = build_live_page.Tried(inputs, np.full(n, 3), solved, solved, solved, revisions)
    assert len(build_live_page.chosen(tried, count, kind)) == min(count, n)


def test_it_plays_until_it_halts_and_then_to_the_end(live, page_4x4):
    live.open(page_4x4, PUZZLE)
    live.js("state.steps.forEach((step, i) => step.halts = i === 1)")
    live.set("#speed", 300)
    live.find("#play").click()
    live.wait(lambda: live.js("return state.at === 2 && !state.playing"), "it does not stop at step 2")
    assert live.text("#halt") == "here it stops" and live.visible("#halt")
    live.find("#play").click()
    live.wait(lambda: live.js("return state.at === state.wanted && !state.playing"), "it does not go on")
    assert "past" in live.text("#halt")
    live.js("document.querySelector('#steps').value = 16")
    live.set("#steps", 16)
    assert live.js("return state.steps.length") == 16 and live.text("#where") == "The puzzle"


def test_choosing_puzzles(live, page_4x4, datasets):
    live.open(page_4x4)
    inputs = Arrays(datasets[4], "test").inputs
    known = {"".join("?.1234"[token] for token in row) for row in inputs}
    puzzles = live.js("return data.puzzles.map(({ text }) => text)")
    assert len({*puzzles}) == len(puzzles) and {*puzzles} <= known
    assert live.board() == puzzles[0]
    live.find("#next-puzzle").click()
    live.settle()
    assert live.find("#text").get_attribute("value") == puzzles[1]
    assert f"of {len(inputs)} puzzles" in live.text("#model").lower()


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_cut_off(live, page_4x4, width):
    live.open(page_4x4, PUZZLE, width=width, height=812)
    live.js("go(2)")
    assert live.js("return document.documentElement.scrollWidth") <= width
    too_small = live.js(
        "return [...document.querySelectorAll('button')].filter(b => b.getBoundingClientRect().height < 40)"
    )
    assert not too_small
    live.screenshot(f"live-{width}")


# ---------- What cannot be built ----------


ONE_BLOCK = (*WIDTHS, "arch.num_layers=1")
REFUSED = {
    "the page is for Sudokus": ("maze", "transformer_sudoku", ONE_BLOCK),
    "fixed starts only": (4, "eqr_sudoku", TINY_TRM),
    "multiples of 8, not 36 and 18": (4, "transformer_sudoku", (*ONE_BLOCK, "arch.hidden_size=36")),
    "and a page holds 10,000; use a smaller model": (4, "transformer_sudoku", (*ONE_BLOCK, "arch.hidden_size=64")),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_no_page_can_hold_is_refused_in_one_line(datasets, tmp_path, capsys, monkeypatch, says):
    monkeypatch.setattr(build_live_page, "MAX_PARAMETERS", 10_000 if "10,000" in says else 10**6)
    data, experiment, changes = REFUSED[says]
    data = build_maze(tmp_path) if data == "maze" else datasets[data]
    checkpoint = save_run(tmp_path / "run", data, experiment, *changes, halting=False)
    assert says in refused(capsys, checkpoint, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_run_folder_stands_for_its_checkpoint(datasets, tmp_path):
    checkpoint = save_run(tmp_path / "run", datasets[4], "transformer_sudoku", *WIDTHS, "arch.num_layers=1", NO_PREFIX)
    page = build(checkpoint, examples=2, puzzles=1).read_bytes()
    assert build(checkpoint.parent, examples=2, puzzles=1).read_bytes() == page


def test_a_page_of_somebody_else_is_not_replaced(datasets, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<p>mine")
    checkpoint = save_run(tmp_path / "run", datasets[4], "transformer_sudoku", *ONE_BLOCK, halting=False)
    assert "holds something else" in refused(capsys, checkpoint, tmp_path / "mine.html")


def refused(capsys, checkpoint: Path, page: Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        here(build_live_page.main, f"checkpoint={checkpoint}", f"out={page}")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
