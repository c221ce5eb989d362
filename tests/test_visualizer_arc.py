"""ARC in puzzle_visualizer.html, in headless Chromium: demonstrations, votes, and how right a grid is:
python -m pytest tests/test_visualizer_arc.py
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from evaluators import arc as arc_evaluation
from evaluators.arc_voting import Tasks
from puzzles.arc import crop_shapes, parse_augmentation
from puzzles.draw import PALETTE
from tests.arc_oracle import oracle_augment, oracle_encode
from tests.arc_predictions import build_dataset, predict, raw_tasks, save_torch
from tests.browser import Page
from tests.sample_datasets import Arrays, as_other_tools_write_it, write_dataset
from tests.test_visualizer_predictions import RIGHT_AND_WRONG, Made, bars, open_both

COLOURS = [PALETTE[f"arc_{colour}"] for colour in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("arc")


@pytest.fixture(scope="module")
def dataset(folder) -> Path:
    return build_dataset(folder)


@pytest.fixture(scope="module")
def predictions(folder, dataset) -> Path:
    return save_torch(folder / "step_1", predict(dataset, seed=1, right=0.2)[0])


@pytest.fixture(scope="module")
def tasks(dataset, predictions) -> Tasks:
    return arc_evaluation.vote(dataset, [predictions])


@pytest.fixture(scope="module")
def candidates(folder, dataset, predictions) -> Path:
    """The file as the command writes it."""
    path = folder / "candidates.json"
    arguments = [f"dataset={dataset}", f"predictions={predictions}", f"candidates={path}", "json=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["arc", *arguments])
        arc_evaluation.main()
    return path


def grids(page: Page, selector: str) -> list[list[list[int]]]:
    """The colours that canvases show: the middle of every cell, whose number is said by `ariaLabel` or by its square
    shape; a cross there counts as the colour beside it."""
    return page.js(
        """
        const [selector, colours] = arguments;
        return Array.from(document.querySelectorAll(selector), canvas => {
          const { width, height } = canvas, copy = new OffscreenCanvas(width, height).getContext("2d");
          copy.drawImage(canvas, 0, 0);
          const unit = Number(canvas.dataset.unit), { data } = copy.getImageData(0, 0, width, height);
          const hex = part => part.toString(16).padStart(2, "0");
          return Array.from({ length: height / unit }, (_, row) => Array.from({ length: width / unit }, (_, column) => {
            const start = 4 * ((row * unit + Math.floor(unit / 8)) * width + Math.floor((column + .5) * unit));
            return colours.indexOf("#" + Array.from(data.slice(start, start + 3), hex).join(""));
          }));
        });""",
        selector,
        COLOURS,
    )


def augmented(grid: list[list[int]], name: str) -> list[list[int]]:
    _, tid, colours = parse_augmentation(name)
    return oracle_augment(grid, tid, "".join(map(str, colours))) if grid else []


def name_of(dataset: Path, group: int, puzzle: int, split: str = "test") -> str:
    arrays, names = Arrays(dataset, split), json.loads((dataset / "identifiers.json").read_text())
    return names[arrays.puzzle_identifiers[arrays.group_indices[group] + puzzle]]


# ---------- Demonstrations ----------


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "with names of TRM's builder"])
def test_demonstrations_are_beside_the_test_pair_in_its_frame(page, dataset, tmp_path, theirs):
    folder = shutil.copytree(dataset, tmp_path / "arc")
    if theirs:
        as_other_tools_write_it(folder)
    page.load().open(folder)
    for group, puzzle in ((0, 0), (0, 3), (2, 5)):  # the first has two test pairs
        page.go(f"split=test&group={group + 1}&puzzle={puzzle + 1}")
        name = name_of(folder, group, puzzle)
        task = raw_tasks()[parse_augmentation(name)[0]]
        pairs = task["train"] + (task["test"] if len(task["test"]) > 1 else [])
        wanted = [augmented(pair[side], name) for pair in pairs for side in ("input", "output")]
        assert grids(page, "#strip canvas") == wanted
        counts = [f"{len(task['train'])} demonstrations"]
        if len(task["test"]) > 1:
            counts += [f"{len(task['test'])} test pairs of this task"]
        assert page.texts("#strip h3") == counts
        beside = page.js(
            "const [strip, boards] = ['#strip', '#boards'].map(id => document.querySelector(id)"
            ".getBoundingClientRect()); return strip.right <= boards.left && Math.abs(strip.top - boards.top) < 40"
        )
        assert beside
    page.find("#strip button:nth-child(2)").click()  # the second demonstration of the last one
    page.settle()
    row = Arrays(folder).example(*place_of(folder, name), 1)
    assert page.text("#details").startswith(f"train/all__inputs.npy[{row}] ")
    assert "1 test pair" in page.texts("#strip h3")


def place_of(dataset: Path, name: str) -> tuple[int, int]:
    """Group and puzzle of a name in train."""
    arrays, names = Arrays(dataset), json.loads((dataset / "identifiers.json").read_text())
    puzzle = int(np.flatnonzero(arrays.puzzle_identifiers == names.index(name))[0])
    group = int(np.searchsorted(arrays.group_indices, puzzle, side="right")) - 1
    return group, puzzle - int(arrays.group_indices[group])


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("test", "Only the split test is here. The demonstrations of a task lie in train."),
        ("train", "Only the split train is here. Test pairs of a task lie in test or val."),
    ],
)
def test_a_split_alone_says_what_is_missing(page, dataset, tmp_path, split, said):
    page.load().drop(Path(shutil.copytree(dataset / split, tmp_path / split)))
    page.wait(lambda: page.visible("#strip p"))
    assert page.text("#strip p") == f"{said} Open the folder of the whole dataset to see them."
    assert not page.visible("#split") and not page.visible("#set")  # nothing to choose


# ---------- Votes ----------


def test_candidates_are_shown_in_the_order_of_the_votes(page, dataset, tasks, candidates):
    page.load().open(dataset)
    page.choose_file(candidates)
    page.wait(lambda: page.visible("#votes-pane"))
    page.settle()
    names = list(tasks)
    seen = set()
    for puzzle in (0, 1, 4):
        for group, task in enumerate(names):
            for number, test in enumerate(tasks[task]):
                page.go(f"split=test&group={group + 1}&puzzle={puzzle + 1}&example={number + 1}")
                name = name_of(dataset, group, puzzle)
                best = [one.grid.tolist() for one in test.candidates[:10]]
                shown = [augmented(grid, name) for grid in best if grid]
                for read, wanted in zip(grids(page, "#votes canvas"), shown, strict=True):
                    read, wanted = np.array(read), np.array(wanted)
                    assert (read == wanted)[read >= 0].all() and (
                        read < 0
                    ).sum() <= 9  # under the cross of a wrong cell
                cards = page.texts("#votes .candidate")
                assert len(cards) == len(best)
                total = sum(one.votes for one in test.candidates)
                for place, (card, one) in enumerate(zip(cards, test.candidates, strict=False), 1):
                    is_right = one.grid.tolist() == test.answer.tolist()
                    assert card.startswith(f"{place}. {'✓ right' if is_right else '✗ wrong'}")
                    assert f"{one.votes} vote{'s' * (one.votes != 1)}, {100 * one.votes / total:.1f} %" in card
                    assert f"confidence {100 * one.confidence:.1f} %" in card
                    if one.grid.shape == test.answer.shape and not is_right:
                        assert f"{(one.grid != test.answer).sum()} of {one.grid.size} cells wrong" in card
                    elif one.grid.size and not is_right:
                        rows, columns = np.shape(augmented(one.grid.tolist(), name))
                        assert f"{rows} × {columns}, not " in card
                assert len(page.texts("#votes .attempts .candidate")) == min(2, len(best))
                verdict = "Solved" if test.rank <= 2 else "Not solved"
                assert page.text("#votes-verdict").startswith(verdict)
                seen.add(verdict)
    assert seen == {"Solved", "Not solved"}
    page.screenshot("votes")
    page.go("split=train")
    assert not page.visible("#votes")


def test_pass_at_2_is_that_of_the_command(page, dataset, tasks, candidates):
    scores = json.loads(candidates.read_text())["scores"]
    page.load().open(dataset)
    page.drop(candidates)
    page.wait(lambda: page.visible("#votes-pane"))
    page.settle()
    solved = [name for name, tests in tasks.items() if all(test.rank <= 2 for test in tests)]
    assert 0 < len(solved) < len(tasks) and scores["task"]["2"] == len(solved) / len(tasks)
    share, fractional = (100 * scores[key]["2"] for key in ("task", "fractional"))
    assert page.text("#votes-score") == (
        f"pass@2: {len(solved)} of {len(tasks)} tasks solved ({share:.1f} %); by test inputs {fractional:.1f} %"
    )
    note = {float("inf"): "no vote"}
    ranks = {
        name: ", ".join(note.get(test.rank, f"place {test.rank}") for test in tests) for name, tests in tasks.items()
    }
    listed = "#tasks .row > span"
    assert page.texts(listed) == [text for entry in ranks.items() for text in entry]
    page.js("document.querySelector('input[name=tasks][value=unsolved]').click()")
    unsolved = [name for name in tasks if name not in solved]
    assert page.texts(f"{listed}:first-child") == unsolved
    page.js("document.activeElement.blur()")
    page.press(Keys.HOME)
    assert page.text("#title") == unsolved[0] and page.fragment()["pane"] == "votes"
    link = "&".join(f"{key}={value}" for key, value in page.fragment().items())
    page.load(link).open(dataset)
    assert page.visible("#pane-votes") and page.text("#title") == unsolved[0]


def test_an_unknown_answer_is_in_no_score(page, dataset, tasks, candidates, tmp_path):
    """The last task is a private one: its labels are padding, and its votes have no rank."""
    folder, name = shutil.copytree(dataset, tmp_path / "arc"), list(tasks)[-1]
    labels, arrays = np.load(folder / "test/all__labels.npy"), Arrays(folder, "test")
    labels[arrays.example(len(tasks) - 1, 0) :] = 0
    np.save(folder / "test/all__labels.npy", labels)
    content = json.loads(candidates.read_text())
    for test in content["tasks"][name]:
        test["rank"] = None
    (tmp_path / "votes.json").write_text(json.dumps(content, indent=1))
    page.load().open(folder)
    page.choose_file(tmp_path / "votes.json")
    page.wait(lambda: page.visible("#votes-pane"))
    page.go(f"split=test&group={len(tasks)}")
    assert page.text("#votes-score").endswith("of 1 task the answers are not known")
    assert f"of {len(tasks) - 1} tasks solved" in page.text("#votes-score")
    assert page.texts("#tasks .row > span")[-1] == "not known, not known"
    assert page.text("#votes-verdict") == "The right answer is not known"
    assert not any("right" in card or "wrong" in card for card in page.texts("#votes .candidate"))
    assert page.texts(".panel .title span")[1] == "not known"


def _change(**changes):
    return lambda content: content | changes


def _without_a_task(content: dict) -> dict:
    return content | {"tasks": {f"{name}x": tests for name, tests in content["tasks"].items()}}


def _of_the_first(content: dict, **changes) -> dict:
    first, tests = next(iter(content["tasks"].items()))
    return content | {"tasks": content["tasks"] | {first: [tests[0] | changes, *tests[1:]]}}


def _another_is_right(content: dict) -> dict:
    test = next(iter(content["tasks"].values()))[0]
    return _of_the_first(content, rank=1 + test["rank"] % 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change(format=2), "has format 2, this page reads 1"),
        (_change(split="val"), "belongs to another dataset .*split val.: dataset has no ARC tasks in a split val"),
        (_change(tasks=[]), r"is damaged: its tasks is \[\]"),
        (_change(predictions=5), "is damaged: its predictions is 5"),
        (_change(tasks={"12997ef3": [5]}), "is damaged at task 12997ef3; run evaluators.arc again"),
        (lambda content: _of_the_first(content, rank=0), "is damaged at task 12997ef3"),
        (lambda content: _of_the_first(content, candidates=[{"grid": [[10]]}]), "is damaged at task 12997ef3"),
        (_without_a_task, "dataset has no test input for its task 12997ef3x, or too few"),
        (_change(tasks={"12997ef3": []}), "its task 12997ef3 has another number of test inputs"),
        (_another_is_right, "another answer to task 12997ef3 is right"),
    ],
)
def test_votes_that_do_not_fit_are_refused(page, dataset, candidates, tmp_path, damage, message):
    (tmp_path / "votes.json").write_text(json.dumps(damage(json.loads(candidates.read_text()))))
    page.load().open(dataset)
    page.choose_file(tmp_path / "votes.json")
    page.wait(lambda: page.visible("#messages li"))
    assert re.search(message, page.text("#messages li")), page.text("#messages li")
    assert page.boards() == ["Input", "Label"] and not page.visible("#votes")


# ---------- How right a grid is ----------


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[Path, Path]:
    """Predictions of a grid of 3×4: right, two cells wrong, a column too wide, without the end at the right, and one
    whose answer is not known. What is beyond the grid's end is noise."""
    folder, rng = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
    label = np.array(oracle_encode([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]]))
    wide = np.array(oracle_encode([[1, 2, 3, 4, 9], [5, 6, 7, 8, 9], [1, 2, 3, 4, 9]]))
    labels = np.array([label] * 4 + [0 * label], np.uint8)
    answers = np.array([label, label, wide, label, wide], np.uint8)
    answers[1, [0, 31]] = 11
    answers[3, 4] = 0
    for answer, label in zip(answers, labels, strict=True):
        noise = np.flatnonzero(label == 0)
        noise = noise[noise >= 150]
        answer[noise] = rng.integers(0, 12, len(noise))
    inputs = np.tile(np.array(oracle_encode([[1, 2]]), np.uint8), (5, 1))
    dataset = write_dataset(folder / "data", inputs, labels, vocab_size=12, names=list("abcde"))
    made = Made(dataset, split="train")
    made.by_step = np.stack([np.where(answers > 1, 2, answers)] * 2 + [answers] * 4, axis=1)
    made.answers = answers
    return dataset, made.write(folder / "step_1_preds", ranks=1)


def test_end_tokens_and_padding_are_no_cells(page, judged):
    open_both(page, *judged)
    verdicts = [
        ("right", "All 12 cells right", "3 × 4"),
        ("2 wrong", "2 of 12 cells wrong", "3 × 4"),
        ("wrong end", "All 12 cells right, but the grid is 3 × 5, not 3 × 4", "3 × 5"),
        ("wrong end", "All 12 cells right, but the tokens that end the grid are not", "3 × 4"),
        ("not known", "The right answer is not known", "3 × 5"),
    ]
    assert [row.split(" · ")[0] for row in page.texts("#answers .row > span:last-child")] == [v[0] for v in verdicts]
    assert page.text("#score") == "1 of 4 exactly right (25.0 %); of 1 other the right answer is not known"
    for group, (_, said, size) in enumerate(verdicts):
        page.go(f"group={group + 1}")
        assert (page.text("#verdict"), page.texts(".panel .title span")[2]) == (said, size)
        rows, columns = map(int, size.split(" × "))
        shape = (rows, max(columns, 4))
        shown = page.pixels(2, shape[1], at=(0.5, 0.1))
        wanted = np.load(judged[1] / "answers.0.npy")[group].reshape(30, 30)[: shape[0], : shape[1]]
        assert [[COLOURS.index(colour) for colour in row] for row in shown] == (wanted.astype(int) - 2).tolist()
    assert not bars(page) & RIGHT_AND_WRONG  # of the last, whose answer is not known
    page.go("group=1")
    assert bars(page) == RIGHT_AND_WRONG
    page.js("document.querySelector('input[value=wrong]').click()")
    assert page.text("#answers-title") == "3 examples"
    page.js("document.querySelector('input[value=right]').click()")
    assert page.text("#answers-title") == "1 example"


def test_the_size_of_an_answer_is_that_of_the_voting(page, tmp_path):
    """The rectangle of colours that is cropped from a prediction, whatever lies around it."""
    rng = np.random.default_rng(3)
    answers = rng.integers(2, 12, (12, 900)).astype(np.uint8)
    for answer, share in zip(answers, np.linspace(0.002, 0.3, 12), strict=True):
        answer[rng.random(900) < share] = 0
    answers[-1, 0] = 1
    label = np.tile(np.array(oracle_encode([[1]]), np.uint8), (12, 1))
    dataset = write_dataset(tmp_path / "data", label, label, vocab_size=12)
    made = Made(dataset, split="train")
    made.answers = answers
    open_both(page, dataset, made.write(tmp_path / "step_1_preds", ranks=1, with_steps=False))
    for group, (rows, columns) in enumerate(crop_shapes(answers).tolist()):
        page.go(f"group={group + 1}")
        assert page.texts(".panel .title span")[2] == (f"{rows} × {columns}" if rows else "empty")


# ---------- Steps that play ----------


def test_the_steps_play(page, judged):
    open_both(page, *judged, "group=2")
    page.js("document.activeElement.blur()")
    page.press(" ")
    assert page.text("#step-text") == "after step 1 of 6" and page.text("#play") == "❚❚"
    page.wait(lambda: page.text("#step-text") == "after step 6 of 6")
    assert page.text("#play") == "▶" and page.text("#verdict") == "2 of 12 cells wrong"
    page.find("#play").click()
    page.wait(lambda: page.text("#step-text") == "after step 2 of 6")
    page.press(Keys.ARROW_RIGHT)  # another example
    assert page.text("#play") == "▶" and page.fragment()["group"] == "3"


def test_on_a_phone_the_slider_stays_in_view(page, judged):
    for scroll in (0, 200):
        open_both(page, *judged, "group=2", width=390, height=844)
        box = page.js(
            "scrollTo(0, arguments[0]); return document.querySelector('#step').getBoundingClientRect()", scroll
        )
        assert box["top"] > 0 and box["bottom"] <= 844
    page.js("scrollTo(0, 0)")
    page.screenshot("phone")


# ---------- What else was dropped ----------


def test_a_run_is_told_from_a_dataset(page, dataset, tmp_path, candidates):
    run = tmp_path / "run"
    run.mkdir()
    (run / "all_config.yaml").write_text("arch:\n  name: x\ndata_path: data/arc\nlr: 1\n")
    for name in ("step_9", "step_100", "step_100_all_preds.0"):
        (run / name).write_bytes(b"weights")
    for opening in (page.choose, page.drop):
        page.load()
        opening(run)
        page.wait(lambda: page.visible("#messages li"))
        assert page.text("#messages li") == (
            "run is the folder of a training run, and holds no predictions that can be shown. Open its dataset "
            "(data/arc); for its answers, run python evaluate.py checkpoint=run/step_100 save_steps=true and open the "
            "run again"
        )
    submission = tmp_path / "submission.json"
    submission.write_text(json.dumps({"12997ef3": [{"attempt_1": [[1]], "attempt_2": [[2]]}]}))
    page.drop(submission)
    page.wait(lambda: "is a submission, which holds no votes" in page.text("#messages"))


def test_predictions_and_votes_wait_for_their_dataset(page, dataset, candidates, tmp_path):
    run = tmp_path / "run"
    Made(dataset).write(run / "step_7_preds")
    shutil.copy(candidates, run / "votes.json")
    page.load().choose(run)
    page.wait(lambda: page.visible("#messages li"))
    said = f"These are predictions and votes; open the dataset that they were made from first: {dataset}"
    assert page.text("#messages li").startswith(said)
    page.choose(dataset)
    page.wait(lambda: "exactly right" in page.text("#score") and page.text("#votes-score"))
    assert page.boards() == ["Input", "Label", "Prediction"] and page.visible("#votes")


# ---------- Looks ----------


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_it_fits_the_screen(page, dataset, candidates, tmp_path, width, dark):
    folder = Made(dataset).write(tmp_path / "step_7_preds")
    open_both(page, dataset, folder, "split=test&group=2", width=width, height=860, dark=dark)
    page.choose_file(candidates)
    page.wait(lambda: page.visible("#votes"))
    page.settle()
    assert page.js("return document.documentElement.scrollWidth") <= width
    page.screenshot(f"votes-{width}-{'dark' if dark else 'light'}")


def test_small_boards_fill_the_page_and_no_word_is_cut_off(page, sudoku):
    page.load().open(Made(sudoku, seed=1).dataset)
    share = "const [board, all] = ['#boards canvas', '#boards'].map(id => document.querySelector(id).clientWidth);"
    assert page.js(f"{share} return 2 * board / all") > 0.9
    page.load(width=390, height=844).open(sudoku)
    room = page.js(
        """const select = document.querySelector("#kind"), context = document.createElement("canvas").getContext("2d");
           context.font = getComputedStyle(select).font;
           return select.clientWidth - context.measureText(select.selectedOptions[0].text).width"""
    )
    assert room > 24  # for the arrow
