"""The paper's figures: python -m pytest tests/test_figures.py"""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.stats import binomtest, ortho_group

from errors import UserError
from evaluators import figures
from evaluators.figure_plots import BLUE, ORANGE, TITLES, VERMILLION, draw_steps, spread, titled, wilson_interval
from evaluators.figures import Moments, batches, doubling, participation_ratio
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1
from puzzles.draw import PALETTE, board_image
from puzzles.kind import find_kind
from tests import warm
from tests.arc_oracle import oracle_encode
from tests.flattering import PUZZLES, RIGHT, flattering_run, own_steps, split_inputs
from tests.launch import error_line, run
from training.config import load_config


@pytest.fixture
def checkpoint(tmp_path):
    return flattering_run(tmp_path)


def make(monkeypatch, figure, checkpoint, *args):
    """Run the command in this process; -> the report, and the picture's pixels (height, width, 3)."""
    monkeypatch.setattr("sys.argv", ["figures", figure, f"checkpoint={checkpoint}", "device=cpu", *map(str, args)])
    figures.main()
    picture = checkpoint.with_name(f"step_60_{figure}.png")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    return json.loads(picture.with_suffix(".json").read_text()), pixels


def share(pixels: np.ndarray, colour: str) -> float:
    return (np.abs(pixels - 255 * np.array(to_rgb(colour))).max(-1) < 2).mean()


# Participation ratio


def test_participation_ratio_of_known_spectra():
    assert participation_ratio(3 * torch.eye(7, dtype=torch.float64)) == pytest.approx(7)
    direction = torch.arange(1.0, 6.0, dtype=torch.float64)
    assert participation_ratio(torch.outer(direction, direction)) == pytest.approx(1)
    rotation = torch.from_numpy(ortho_group.rvs(4, random_state=0))
    spectrum = torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)
    assert participation_ratio(rotation @ spectrum.diag() @ rotation.T) == pytest.approx(15**2 / 85)
    assert participation_ratio(torch.zeros(3, 3)) == 0


def test_participation_ratio_of_an_isotropic_gaussian():
    """Of n samples in D dimensions it is about D / (1 + D / n) (Marchenko and Pastur)."""
    samples = torch.randn(4000, 40, generator=torch.Generator().manual_seed(0)) + 100
    moments = Moments(40)
    for part in samples.split(700):
        moments.add(part)
    np.testing.assert_allclose(moments.covariance(), np.cov(samples.numpy().T, bias=True), atol=2e-4)
    assert participation_ratio(moments.covariance()) == pytest.approx(40 / 1.01, rel=0.01)


def test_participation_ratio_of_states_that_hardly_vary():
    """Not that of rounding: 0 where they are the same, 1 where they lie on a line."""
    generator = torch.Generator().manual_seed(0)
    for size, expected in ((0.0, 0), (1e-7, 1)):
        for _ in range(20):
            one, direction = torch.randn(2, 64, generator=generator, dtype=torch.float64)
            moments = Moments(64)
            for part in (one + size * torch.randn(81, 1, generator=generator) * direction).split(40):
                moments.add(part)
            assert participation_ratio(moments.covariance()) == pytest.approx(expected, abs=1e-6)


def test_states_of_any_model():
    """Two puzzles of 3 cells; the embedding's position comes before them. Tensors of other shapes are no cells'."""

    @dataclass
    class State:
        plan: torch.Tensor
        cells: torch.Tensor
        clock: torch.Tensor
        marks: torch.Tensor
        memory: torch.Tensor

    plan, cells = torch.randn(2, 4, 5), torch.randn(2, 3, 7)
    state = State(plan, cells, torch.zeros(2), torch.zeros(2, 4, 1, dtype=torch.int32), torch.zeros(2, 9, 5))
    found = figures.cell_states(state, cells=3, positions=4)
    assert list(found) == ["plan", "cells"]
    assert torch.equal(found["plan"], torch.cat([plan[0, 1:], plan[1, 1:]]))
    assert torch.equal(found["cells"], torch.cat([cells[0], cells[1]]))
    with pytest.raises(UserError, match=r"no state with a vector for each cell \(it has plan, cells, clock"):
        figures.cell_states(state, cells=6, positions=6)


def test_batches_end_at_every_count():
    assert doubling(1) == [1]
    assert doubling(8) == [1, 2, 4, 8]
    assert doubling(21) == [1, 2, 4, 8, 16, 21]
    assert batches([1, 2, 4, 9], 3) == [(0, 1), (1, 2), (2, 4), (4, 7), (7, 9)]


def test_participation_of_a_run(checkpoint, monkeypatch):
    """Against eigenvalues of the states that training's own loop passes through."""
    report, pixels = make(monkeypatch, "participation", checkpoint)
    assert report["puzzles"] == [1, 2, 4, 8, 16, PUZZLES]
    assert report["hidden_size"] == 32
    assert (report["examples"], report["max_steps"]) == (PUZZLES, 4)

    def expected(path, state):
        order = np.random.default_rng(7).permutation(PUZZLES)  # the run's seed
        states = np.stack([step[state] for step in own_steps(path, split_inputs(checkpoint.parents[1] / "data"))])
        ratios = []
        for count in report["puzzles"]:
            samples = states[:, order[:count], 1:].reshape(-1, 32).astype(np.float64)  # 1 puzzle-embedding position
            eigenvalues = np.linalg.eigvalsh(np.cov(samples.T, bias=True))
            ratios.append(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
        return ratios

    for state in ("z_H", "z_L"):
        np.testing.assert_allclose(report["trained"][state], expected(checkpoint, state), rtol=1e-4)
    # The untrained model: a new one after the run's seed.
    torch.manual_seed(7)
    run_config = load_config(str(checkpoint.parent / "all_config.yaml"))
    head = run_config.arch.build(batch_size=64, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    torch.save(head.state_dict(), checkpoint.with_name("untrained"))
    for state in ("z_H", "z_L"):
        np.testing.assert_allclose(
            report["untrained"][state], expected(checkpoint.with_name("untrained"), state), rtol=1e-4
        )
    assert share(pixels, BLUE) > 0.002
    assert share(pixels, VERMILLION) > 0.002


# Scaling


def test_halting_curves_by_hand():
    exact = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], bool)
    wants = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], bool)
    curves = figures.halting_curves(exact, wants, [1, 2, 4])
    assert curves["halt_max"] == {
        "exact_accuracy": pytest.approx([1 / 3, 2 / 3, 2 / 3]),
        "mean_steps": pytest.approx([1, 2, 4]),
    }
    assert curves["halt_q"] == {
        "exact_accuracy": pytest.approx([1 / 3, 2 / 3, 1]),
        "mean_steps": pytest.approx([1, 2, 3]),
    }


@pytest.mark.usefixtures("undrawn")
def test_puzzles_without_an_answer_are_not_scored(checkpoint, monkeypatch):
    """As in evaluate.py. A figure of the steps draws them, and calls none of them solved."""
    path = checkpoint.parents[1] / "data/test/all__labels.npy"
    labels = np.load(path)
    labels[RIGHT + 3 :] = 0
    np.save(path, labels)
    report, _ = make(monkeypatch, "scaling", checkpoint, "max_steps=4")
    assert report["halt_max"]["exact_accuracy"][-1] == pytest.approx(RIGHT / (RIGHT + 3))
    assert (report["scored"], report["examples"]) == (RIGHT + 3, len(labels))
    report, _ = make(monkeypatch, "reliability", checkpoint)
    assert sum(report["halt_max"]["puzzles"]) == RIGHT + 3
    np.save(path, 0 * labels)
    for figure in ("scaling", "reliability"):
        with pytest.raises(UserError, match=r"no example of .*data/test has an answer, so that nothing is scored"):
            figures.make_figure(figures.FigureConfig(figure=figure, checkpoint=str(checkpoint)), torch.device("cpu"))
    titles = []
    monkeypatch.setattr("evaluators.figure_plots._show_board", lambda axis, title, *_, **__: titles.append(title))
    make(monkeypatch, "steps", checkpoint)
    assert "step 1" in titles
    assert not [title for title in titles if "✓" in title]


def test_scaling_of_a_run(checkpoint, monkeypatch):
    """With a bias that lets about half of the puzzles halt early."""
    inputs = split_inputs(checkpoint.parents[1] / "data")
    steps = own_steps(checkpoint, inputs)
    weights = torch.load(checkpoint, weights_only=True)
    differences = np.array([step["q_continue"] - step["q_halt"] for step in steps])
    weights["model.inner.q_head.bias"][0] += float(np.quantile(differences, 0.3))
    torch.save(weights, checkpoint)
    steps = own_steps(checkpoint, inputs)

    report, pixels = make(monkeypatch, "scaling", checkpoint, "max_steps=4")
    assert report["limits"] == [1, 2, 4]
    assert report["trained_steps"] == 4
    labels = np.load(checkpoint.parents[1] / "data/test/all__labels.npy")
    for n, limit in enumerate(report["limits"]):
        solved, used = 0, 0
        for i in range(PUZZLES):
            for number in range(limit):
                if steps[number]["q_halt"][i] > steps[number]["q_continue"][i] or number == limit - 1:
                    break
            used += number + 1
            solved += (steps[number]["answers"][i] == labels[i]).all()
        assert report["halt_q"]["mean_steps"][n] == pytest.approx(used / PUZZLES)
        assert report["halt_q"]["exact_accuracy"][n] == pytest.approx(solved / PUZZLES)
    assert 1 < report["halt_q"]["mean_steps"][-1] < 4
    assert 0 < report["halt_q"]["exact_accuracy"][-1] < report["halt_max"]["exact_accuracy"][-1]
    assert report["halt_max"]["exact_accuracy"] == pytest.approx([0, 0, RIGHT / PUZZLES])
    assert report["halt_max"]["mean_steps"] == [1, 2, 4]
    assert share(pixels, BLUE) > 0.001
    assert share(pixels, ORANGE) > 0.001

    assert make(monkeypatch, "scaling", checkpoint, "examples=5")[0]["limits"] == [1, 2, 4, 8]  # beyond the training


def test_reliability_of_a_run(checkpoint, monkeypatch):
    """Bin by bin from the steps; with a bias that lets about half of the puzzles halt early, and spread confidences."""
    inputs = split_inputs(checkpoint.parents[1] / "data")
    weights = torch.load(checkpoint, weights_only=True)
    differences = np.array([step["q_continue"] - step["q_halt"] for step in own_steps(checkpoint, inputs)])
    weights["model.inner.q_head.bias"][0] += float(np.quantile(differences, 0.3))
    torch.save(weights, checkpoint)
    steps = own_steps(checkpoint, inputs)
    labels = np.load(checkpoint.parents[1] / "data/test/all__labels.npy")
    report, pixels = make(monkeypatch, "reliability", checkpoint)
    for rule in ("halt_max", "halt_q"):
        rows = []
        for i in range(PUZZLES):
            stop = 3
            if rule == "halt_q":
                stop = next((n for n in range(3) if steps[n]["q_halt"][i] > steps[n]["q_continue"][i]), 3)
            sure = 1 / (1 + np.exp(-float(steps[stop]["q_halt"][i])))
            rows.append((int(10 * sure), sure, (steps[stop]["answers"][i] == labels[i]).all()))
        error = 0.0
        for place in range(10):
            inside = [(sure, right) for where, sure, right in rows if where == place]
            assert report[rule]["puzzles"][place] == len(inside)
            if not inside:
                assert report[rule]["confidence"][place] is report[rule]["exact_accuracy"][place] is None
                continue
            sure, right = np.mean(inside, axis=0)
            assert report[rule]["confidence"][place] == pytest.approx(sure, rel=1e-5)
            assert report[rule]["exact_accuracy"][place] == pytest.approx(right)
            error += len(inside) / PUZZLES * abs(sure - right)
        assert report[rule]["ece"] == pytest.approx(error, rel=1e-5)
    assert report["halt_max"] != report["halt_q"]
    assert share(pixels, BLUE) > 0.001 and share(pixels, ORANGE) > 0.001


def test_wilson_interval():
    low, high = wilson_interval(np.array([0, 3 / 20, 1]), 20)
    for i, solved in enumerate((0, 3, 20)):
        expected = binomtest(solved, 20).proportion_ci(0.95, method="wilson")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-4)


# Steps


def test_steps_of_a_run(checkpoint):
    """All puzzles, against the loop that training uses."""
    data = checkpoint.parents[1] / "data"
    inputs, labels = split_inputs(data), np.load(data / "test/all__labels.npy")
    labels[20, 5] = 0  # does not count
    np.save(data / "test/all__labels.npy", labels)
    config = figures.FigureConfig(figure="steps", checkpoint=str(checkpoint))
    report = figures.compute_steps(figures.open_subject(config, PUZZLES, 1, torch.device("cpu")))
    assert report["puzzles"][20]["solution"].tolist() == labels[20].tolist()
    assert [puzzle["cells"] for puzzle in report["puzzles"]] == [16] * 20 + [15]
    report = json.loads(figures.as_json(report))

    def text(tokens):
        return "".join("..1234"[token] for token in tokens)

    steps = own_steps(checkpoint, inputs)
    assert report["kind"] == "sudoku"
    for i, puzzle in enumerate(report["puzzles"]):
        assert (puzzle["example"], puzzle["puzzle"], puzzle["solution"]) == (i, text(inputs[i]), text(labels[i]))
        assert [step["answer"] for step in puzzle["steps"]] == [text(step["answers"][i]) for step in steps]
        equal = [(step["answers"][i] == labels[i]).sum() for step in steps]
        assert [step["equal_cells"] for step in puzzle["steps"]] == equal
        sure = [1 / (1 + np.exp(-step["q_halt"][i])) for step in steps]
        np.testing.assert_allclose([step["confidence"] for step in puzzle["steps"]], sure, atol=1e-5)
    assert sum(puzzle["steps"][-1]["equal_cells"] == 16 for puzzle in report["puzzles"]) == RIGHT


def test_the_picture_of_the_steps(checkpoint, monkeypatch):
    report, pixels = make(monkeypatch, "steps", checkpoint, "examples=2")
    shown = [puzzle["example"] for puzzle in report["puzzles"]]
    assert shown == np.sort(np.random.default_rng(7).choice(PUZZLES, 2, replace=False)).tolist()  # as evaluate.py's
    assert pixels.shape[1] > 1000
    assert share(pixels, PALETTE["wrong"]) > 0.001
    tint = board_image(find_kind("sudoku")(4, 4), np.full(16, 2), changed=np.ones(16, bool)).getpixel((9, 9))
    assert (np.abs(pixels.astype(int) - tint).max(-1) < 2).mean() > 0.005  # changed and right


def drawn(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def step_report(kind, puzzle, solution, answer):
    """One puzzle with one step, boards as strings of symbols."""

    def tokens(board):
        return np.array([kind.symbols.index(symbol) for symbol in board], np.uint8)

    step = {"step": 1, "answer": tokens(answer), "confidence": 0.5, "equal_cells": 1}
    row = {"puzzle": tokens(puzzle), "solution": tokens(solution), "cells": 9, "steps": [step]}
    return {"kind": kind, "max_steps": 1, "puzzles": [row]}


@pytest.mark.parametrize("answer", ["So#ooo# G", "So# o # G", "Soo oo# G"])  # too much path, too little, a wall gone
def test_mistakes_are_coloured(answer):
    maze = find_kind("maze")(3, 3)
    puzzle, solution = "S #   # G", "So# oo# G"
    right, wrong = (share(drawn(draw_steps(step_report(maze, puzzle, solution, board))), PALETTE["wrong"])
                    for board in (solution, answer))  # fmt: skip
    assert right < 0.002  # around its meaning
    assert wrong > 0.003


def test_arc_grids_have_their_colours_and_may_be_empty():
    arc = find_kind("arc").of_cells(900)
    puzzle, solution = (np.array(oracle_encode(grid), np.uint8) for grid in ([[1, 2]], [[2, 4], [4, 4]]))
    step = {"step": 1, "answer": np.zeros(900, np.uint8), "confidence": 0.5, "equal_cells": 1}
    row = {"puzzle": puzzle, "solution": solution, "cells": 4, "steps": [step]}
    pixels = drawn(draw_steps({"kind": arc, "max_steps": 1, "puzzles": [row]}))
    assert share(pixels, "#FF4136") > 0.01
    assert share(pixels, "#FFDC00") > 0.02


def test_steps_with_the_same_answer_share_a_board():
    kind = find_kind("sudoku")(4, 4)
    puzzle, answers = np.full(16, 1), [np.full(16, token, np.uint8) for token in (2, 3, 3, 3, 2, 2)]
    steps = [
        {"step": n, "answer": answer, "confidence": n / 10, "equal_cells": 16 * (answer[0] == 3)}
        for n, answer in enumerate(answers, start=1)
    ]
    once = [step | {"answer": answers[0], "equal_cells": 0} for step in steps]
    row = {"puzzle": puzzle.astype(np.uint8), "solution": answers[1], "cells": 16}
    report = {"kind": kind, "max_steps": 6, "puzzles": [row | {"steps": steps}, row | {"steps": once}]}
    axes = draw_steps(report).axes
    assert [axis.get_title() for axis in axes] == [
        "puzzle", "step 1", "steps 2–4 ✓", "steps 5–6", "solution", "puzzle", "steps 1–6", "", "", "solution",
    ]  # fmt: skip
    assert axes[2].get_xlabel() == "16/16 cells · 20–40% sure"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_says_what_it_shows(checkpoint, monkeypatch, name):
    seen = []
    monkeypatch.setattr(figures, "titled", lambda *args: seen.append(titled(*args)) or seen[-1])
    make(monkeypatch, name, checkpoint, "examples=3", "max_steps=2")
    title, about = seen[0]._suptitle.get_text().split("\n")
    assert title == TITLES[name] and about == f"{checkpoint.parent.name}/{checkpoint.name} · 3 puzzles of data/test"


def test_many_steps_are_spread():
    assert spread(8, 8) == [1, 2, 3, 4, 5, 6, 7, 8]
    for steps in (9, 16, 32, 100):
        shown = spread(steps, 8)
        assert shown[0] == 1
        assert shown[-1] == steps
        assert 5 <= len(shown) <= 8
        assert shown == sorted(set(shown))


# The command


@pytest.mark.apart
def test_the_command_as_a_user_starts_it(checkpoint, tmp_path):
    target = tmp_path / "pictures/one.png"
    done = run(
        "-m", "evaluators.figures", "steps", f"checkpoint={checkpoint}", "examples=1", "max_steps=1", f"out={target}"
    )
    assert f"{target} and one.json" in done.stdout
    assert target.read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads(target.with_suffix(".json").read_text())["puzzles"]) == 1
    line = error_line("-m", "evaluators.figures", "curves", f"checkpoint={checkpoint}", run=warm.run)
    assert "figure: Input should be 'steps', 'participation', 'scaling' or 'reliability'" in line


@pytest.mark.parametrize(
    ("out", "taken"),
    [
        ("best.png", ("best.json", b'{"checkpoint": "step_7"}')),
        ("checkpoints.png", ("checkpoints.json", b'{"step_7": {}}')),
        ("list.png", ("list.json", b"[1]")),
        ("cut.png", ("cut.json", b'{"figure": ')),
        ("other.png", ("other.json", b'{"figure": "chart"}')),
        ("photo.png", ("photo.png", b"GIF89a")),
        (".", ("step_7_steps.json", b'{"mine": 1}')),
        ("link.png", ("link.json", None)),
    ],
)
def test_a_figure_replaces_nothing_but_a_figure(tmp_path, out, taken):
    name, content = taken
    (tmp_path / "step_7").touch()
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    config = figures.FigureConfig(figure="steps", checkpoint=str(tmp_path / "step_7"), out=str(tmp_path / out))
    with pytest.raises(UserError, match=rf"{name} is there and (holds something else|is no file)"):
        figures.picture_path(config)
    assert content is None or (tmp_path / name).read_bytes() == content


@pytest.mark.usefixtures("undrawn")
def test_a_figure_of_before_is_replaced(checkpoint, monkeypatch):
    """Another one too, where the user names the file."""
    out = checkpoint.with_name("mine.png")
    for figure in ("reliability", "reliability", "steps"):
        config = figures.FigureConfig(figure=figure, checkpoint=str(checkpoint), examples=1, max_steps=1, out=str(out))
        assert figures.make_figure(config, torch.device("cpu")) == out
    assert json.loads(out.with_suffix(".json").read_text())["figure"] == "steps"


def test_where_figures_go(tmp_path):
    def path(**out):
        return figures.picture_path(figures.FigureConfig(figure="steps", checkpoint=str(tmp_path / "step_7"), **out))

    (tmp_path / "step_7").touch()
    assert path() == tmp_path / "step_7_steps.png"
    assert path(out=str(tmp_path / "new")) == tmp_path / "new/step_7_steps.png"
    assert not (tmp_path / "new").exists()  # made when there is something to put into it
    assert path(out=str(tmp_path / "a.PNG")) == tmp_path / "a.PNG"
    with pytest.raises(UserError, match=r"cannot write /proc/nope/step_7_steps\.png: .*; set out="):
        path(out="/proc/nope")


@pytest.mark.parametrize(("figure", "part"), [("steps", 0), ("scaling", 0), ("steps", 1), ("participation", "state")])
def test_no_figure_is_made_of_what_is_no_number(checkpoint, monkeypatch, figure, part):
    """`part`: of logits and Q(halt), or the state alone."""
    advance = HierarchicalReasoningModel_ACTV1.advance

    def broken(self, state, data):
        state, *outputs = advance(self, state, data)
        if part == "state":
            return replace(state, z_L=state.z_L.clone().fill_(torch.inf)), *outputs
        outputs[part] = outputs[part].clone()
        outputs[part][0] = torch.nan
        return state, *outputs

    monkeypatch.setattr(HierarchicalReasoningModel_ACTV1, "advance", broken)
    config = figures.FigureConfig(figure=figure, checkpoint=str(checkpoint), examples=2, max_steps=1)
    with pytest.raises(UserError, match="no numbers"):
        figures.make_figure(config, torch.device("cpu"))
    assert not list(checkpoint.parent.glob("*.png")) + list(checkpoint.parent.glob("*.json"))


def test_absurd_counts_are_refused_at_once(checkpoint):
    config = figures.FigureConfig(figure="steps", checkpoint=str(checkpoint), examples=201)
    with pytest.raises(UserError, match="examples=201: a picture of steps holds at most 200"):
        figures.make_figure(config, torch.device("cpu"))
    with pytest.raises(ValueError, match="max_steps"):
        figures.FigureConfig(figure="steps", checkpoint=str(checkpoint), max_steps=10**12)
