"""Predictions in puzzle_visualizer.html, in headless Chromium: python -m pytest tests/test_visualizer_predictions.py

The compact format (training/predictions.py) is written here by hand, and what the page counts, marks, filters and
sorts is compared with numpy.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from dataset.format import SplitWriter, content_digest, description_digest, write_identifiers
from puzzles.draw import PALETTE
from tests.browser import Page
from tests.sample_datasets import REFERENCE, Arrays, build_arc, describe_anew, digits, write_dataset

PIPELINE = REFERENCE / "pipeline" / "dataset"  # 4×4 Sudokus, 21 in test
SAID = ["padding", "blank", *"1234"]  # of their tokens
STEPS = 6


class Made:
    """Predictions that were made up: right for about half of the examples, better with every step."""

    def __init__(self, dataset: Path, split: str = "test", sets: tuple[str, ...] = ("all",), seed: int = 0):
        self.dataset, self.split = dataset, split
        self.meta = json.loads((dataset / split / "dataset.json").read_text())
        self.sizes = {name: len(np.load(dataset / split / f"{name}__labels.npy")) for name in sets}
        self.inputs, self.labels = (
            np.concatenate([np.load(dataset / split / f"{name}__{field}.npy") for name in sets])
            for field in ("inputs", "labels")
        )
        rng, (count, cells) = np.random.default_rng(seed), self.labels.shape
        self.by_step = np.repeat(self.labels[:, None], STEPS, axis=1)
        for example in range(count):
            mistakes = rng.integers(1, 4) * (example % 2)
            for step in range(STEPS):
                places = rng.choice(cells, min(cells, mistakes * (STEPS - step)), replace=False)
                self.by_step[example, step, places] = rng.integers(0, self.meta["vocab_size"], len(places))
        self.answers = self.by_step[:, -1]
        self.halt = rng.normal(0, 3, count).astype(np.float32)
        self.counted = self.labels != self.meta["ignore_label_id"]

    @property
    def wrong(self) -> np.ndarray:
        """(examples,) wrong cells"""
        return (self.counted & (self.answers != self.labels)).sum(1)

    @property
    def confidence(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.halt.astype(float)))

    def write(self, folder: Path, ranks: int = 2, with_steps: bool = True) -> Path:
        folder.mkdir(parents=True)
        count = len(self.labels)
        fields = {
            "examples": np.arange(count),
            "answers": self.answers.astype(np.uint8),
            "q_halt_logits": self.halt,
            "q_continue_logits": -self.halt,
            "steps": np.full(count, STEPS, np.uint16),
        } | ({"answers_by_step": self.by_step.astype(np.uint8)} if with_steps else {})
        for rank in range(ranks):
            for name, values in fields.items():
                np.save(folder / f"{name}.{rank}.npy", values[rank::ranks])
        manifest = dict(format=1, dataset=str(self.dataset), split=self.split, sets=self.sizes, examples=count)
        manifest |= dict(seq_len=self.meta["seq_len"], vocab_size=self.meta["vocab_size"], max_steps=STEPS)
        manifest |= dict(checkpoint="run/step_100", halt="max", world_size=ranks, fields=list(fields))
        manifest["dataset_digest"] = description_digest(self.dataset / self.split)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder


@pytest.fixture(scope="module")
def arc(tmp_path_factory) -> Path:
    return build_arc(tmp_path_factory.mktemp("arc"), num_aug=8)


def open_both(page: Page, dataset: Path, predictions: Path, fragment: str = "", **size) -> Page:
    page.load(fragment, **size).open(dataset)
    page.choose(predictions)
    page.wait(lambda: "exactly right" in page.text("#score") and not page.visible("#compare"))
    page.settle()
    return page


def listed(page: Page) -> list[str]:
    """The rows in view, each as `name` and `verdict · confidence`."""
    return page.texts("#answers .row > span:last-child")


def marked(cells: list[dict]) -> list[bool]:
    """Which cells of a Sudoku, as `Page.cells` reads them, are marked as wrong."""
    for cell in cells:
        if cell["text"] not in ("", "×"):  # a wrong digit is red and underlined
            assert (cell["mark"] == PALETTE["wrong"]) == (cell["ink"] == PALETTE["wrong"]), cell
    return [PALETTE["wrong"] in (cell["mark"], cell["ink"]) for cell in cells]


RIGHT_AND_WRONG = {PALETTE["right"], PALETTE["wrong"]}


def bars(page: Page) -> set[str]:
    """The colours of the bars over the steps."""
    shown = page.js(
        "return Array.from(document.querySelectorAll('#bars i'), bar => getComputedStyle(bar).backgroundColor)"
    )
    return {"#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3]) for colour in shown}


def answered(tokens: np.ndarray) -> list[str]:
    """What the cells of a wrong Sudoku say: padding is crossed out."""
    return ["×" if token == 0 else digit for token, digit in zip(tokens, digits(tokens), strict=True)]


def test_wrong_cells_are_marked_and_counted(page, tmp_path):
    made = Made(PIPELINE)
    open_both(page, PIPELINE, made.write(tmp_path / "step_100_preds"))
    assert page.boards() == ["Input", "Label", "Prediction"]
    right = int((made.wrong == 0).sum())
    assert 0 < right < len(made.wrong)
    assert page.text("#score") == f"{right} of 21 exactly right ({100 * right / 21:.1f} %)"
    for example in range(0, 21, 3):  # even ones are right, odd ones wrong
        page.go(f"split=test&group={example + 1}")
        cells = page.cells(2, 4, "1234×")
        assert marked(cells) == (made.answers[example] != made.labels[example]).tolist()
        assert [cell["text"] for cell in cells] == answered(made.answers[example])
        count = int(made.wrong[example])
        assert page.text("#verdict") == (f"{count} of 16 cells wrong" if count else "All 16 cells right")
        assert page.text("#confidence") == f"confidence {100 * made.confidence[example]:.1f} %"
    page.go("split=test&group=2")
    page.select("#kind", "Numbers")
    sample = page.texts("#legend span").index("differs from the label")
    assert page.cells(sample, 1, ["1", "-1"], "#legend canvas")[0]["text"] == "1"
    page.go("split=train")
    assert page.boards() == ["Input", "Label"]


def test_filters_and_order(page, tmp_path):
    made = Made(PIPELINE)
    open_both(page, PIPELINE, made.write(tmp_path / "step_100_preds"))
    rows = [
        f"{f'{wrong} wrong' if wrong else 'right'} · {100 * confidence:.1f} %"
        for wrong, confidence in zip(made.wrong, made.confidence, strict=True)
    ]

    def check(examples) -> None:
        shown = listed(page)
        assert page.text("#answers-title") == f"{len(examples)} example{'s' if len(examples) != 1 else ''}"
        assert len(shown) >= min(len(examples), 8) and shown == [rows[e] for e in examples][: len(shown)]

    check(range(21))
    page.js("document.querySelector('input[value=wrong]').click()")
    wrong = np.flatnonzero(made.wrong)
    check(wrong)
    page.select("#order", "least confident first")
    check(wrong[np.argsort(made.confidence[wrong])])
    page.js("document.querySelector('input[value=all]').click()")
    page.select("#order", "most confident first")
    check(np.argsort(-made.confidence))
    page.js("document.querySelector('input[value=right]').click()")
    page.set("#least", 50)
    page.set("#most", 95)
    kept = np.flatnonzero((made.wrong == 0) & (made.confidence >= 0.5) & (made.confidence <= 0.95))
    kept = kept[np.argsort(-made.confidence[kept])]
    assert len(kept) > 2
    check(kept)
    page.js("document.activeElement.blur()")
    page.press(Keys.HOME)
    places = [page.fragment()["group"]]
    for _ in kept[1:]:
        page.press(Keys.ARROW_RIGHT)  # along the list
        places.append(page.fragment()["group"])
    assert places == [str(example + 1) for example in kept]
    page.press(Keys.ARROW_RIGHT)
    assert page.fragment()["group"] == places[-1]
    page.set("#least", 100)
    check([])
    page.find("#answers").click()
    page.press(Keys.HOME, Keys.END)  # of an empty list
    assert page.text("#messages") == "" and page.fragment()["group"] == places[-1]


def test_the_slider_goes_through_the_steps(page, tmp_path):
    made = Made(PIPELINE)
    example = int(np.argmax(made.wrong))
    open_both(page, PIPELINE, made.write(tmp_path / "step_100_preds"), f"split=test&group={example + 1}&step=2")

    cell = int(np.argmax(np.ptp(made.by_step[example], axis=0)))
    page.point(2, cell // 4, cell % 4, columns=4)
    page.wait(lambda: page.text("#readout").startswith("Row"))

    def check(step: int) -> None:
        tokens = made.by_step[example, step - 1]
        assert page.text("#readout").endswith(f", prediction {SAID[tokens[cell]]}")
        wrong = tokens != made.labels[example]
        cells = page.cells(2, 4, "1234×")
        assert [cell["text"] for cell in cells] == answered(tokens)
        assert marked(cells) == wrong.tolist()
        assert page.text("#verdict") == (f"{wrong.sum()} of 16 cells wrong" if wrong.any() else "All 16 cells right")
        assert page.text("#step-text") == f"after step {step} of {STEPS}"
        assert page.js("return document.querySelector('#step').valueAsNumber") == step

    check(2)
    for step in (1, 4, 6):
        page.set("#step", step)
        check(step)
        assert page.fragment()["step"] == str(step)
    page.press(",", ",")
    check(4)
    page.press(".")
    check(5)
    heights = page.js("return Array.from(document.querySelectorAll('.bars i'), bar => parseFloat(bar.style.height))")
    counts = (made.by_step[example] != made.labels[example]).sum(1)
    np.testing.assert_allclose(heights, 100 * counts / counts.max(), rtol=1e-4)


def test_arc_predictions_are_marked_where_they_are_labelled(page, tmp_path, arc):
    made = Made(arc, seed=3)
    wrong = made.counted & (made.answers != made.labels)
    noise = (~made.counted & (made.answers != made.labels)).sum(1)
    example = int(np.argmax(np.minimum(made.wrong, noise)))  # cells without a label are not wrong, whatever they say
    assert made.wrong[example] and noise[example]
    open_both(page, arc, made.write(tmp_path / "step_7_preds", ranks=3, with_steps=False), "split=test")
    page.js("document.querySelector('input[value=wrong]').click()")
    assert page.text("#answers-title") == f"{(made.wrong > 0).sum()} examples"
    group, puzzle, _ = Arrays(arc, "test").locate(example)
    page.go(f"split=test&group={group + 1}&puzzle={puzzle + 1}&crop=0")
    red = [colour == PALETTE["wrong"] for row in page.pixels(2, 30, at=(0.4, 0.4)) for colour in row]
    assert red == wrong[example].tolist() and any(red)
    corners = np.array(page.pixels(2, 30, at=(0.2, 0.1))).ravel()
    tokens, labelled = made.answers[example], made.counted[example]
    for colour in range(10):  # full where there is a label, faint elsewhere
        full = PALETTE[f"arc_{colour}"]
        assert set(corners[(tokens == colour + 2) & labelled & ~wrong[example]]) <= {full}
        assert full not in corners[(tokens == colour + 2) & ~labelled]
    assert not page.visible("#step")
    marks = ["padding", "end of the grid", "differs from the label", "beyond the label, not counted"]
    assert sorted(page.texts("#legend span")) == sorted(marks)
    page.screenshot("arc-prediction")


def test_two_sets_count_one_after_another(page, tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "two"
    folder.mkdir()
    write_identifiers(folder, [])
    for name, count in (("first", 5), ("second", 7)):
        tokens, ones = rng.integers(2, 6, (count, 16)), np.ones(count, int)
        writer = SplitWriter(tmp_path, name, seq_len=16, set_name=name)
        writer.append(tokens, tokens, puzzle_identifiers=0 * ones, puzzle_sizes=ones, group_sizes=ones)
        writer.finish(vocab_size=6, num_puzzle_identifiers=1)
    shutil.copytree(tmp_path / "first", folder / "test")
    shutil.copytree(tmp_path / "second", folder / "test", dirs_exist_ok=True)
    describe_anew(folder / "test", sets=["first", "second"])
    made = Made(folder, sets=("first", "second"))
    made.write(folder / "run" / "step_3_preds", ranks=1)  # found in the chosen folder
    page.load().open(folder)
    page.wait(lambda: "exactly right" in page.text("#score") and not page.visible("#compare"))
    right = int((made.wrong == 0).sum())
    assert page.text("#score") == f"{right} of 12 exactly right ({100 * right / 12:.1f} %)"
    page.js("document.activeElement.blur()")
    page.press(Keys.END)
    assert (page.fragment()["set"], page.fragment()["group"]) == ("second", "7")
    assert [cell["text"] for cell in page.cells(2, 4, "1234×")] == answered(made.answers[11])
    page.select("#set", "first")
    assert page.fragment()["set"] == "first" and page.text("#details").startswith("test/first__inputs.npy[0] ")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def _edit(**changes):
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text()) | changes
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


DAMAGES = {
    "manifest.json is missing: that evaluation was not finished": lambda folder: (folder / "manifest.json").unlink(),
    "answers.1.npy is missing": lambda folder: (folder / "answers.1.npy").unlink(),
    "steps.0.npy and examples.0.npy differ in length": lambda folder: np.save(
        folder / "steps.0.npy", np.zeros(3, np.uint16)
    ),
    "answers.0.npy is truncated": lambda folder: (folder / "answers.0.npy").write_bytes(
        (folder / "answers.0.npy").read_bytes()[:-5]
    ),
    "examples.0.npy does not ascend within the split's examples": lambda folder: np.save(
        folder / "examples.0.npy", np.arange(11)[::-1]
    ),
    "has 11 of 21 examples": _edit(world_size=1),
    "split val): dataset has no complete split val": _edit(split="val"),
    "its set all has 20 examples, not 21": _edit(sets={"all": 20}),
    "its vocab_size is 12, not 6": _edit(vocab_size=12),
    "test/dataset.json differs from the one it was made from": _edit(dataset_digest="0123456789abcdef"),
    "has format 2, this page reads 1": _edit(format=2),
    "manifest.json is not valid JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "manifest.json does not hold a JSON object": lambda folder: (folder / "manifest.json").write_text(
        "[" * 9000 + "]" * 9000
    ),
    "manifest.json is a pointer of Git LFS": lambda folder: (folder / "manifest.json").write_text(LFS),
    "manifest.json has 16,777,217 bytes": lambda folder: (folder / "manifest.json").write_text(" " * (2**24 + 1)),
    "manifest.json is damaged: its sets is null": _edit(sets=None),
    "manifest.json is damaged: its fields is 5": _edit(fields=5),
    "manifest.json is damaged: its world_size is -1": _edit(world_size=-1),
    'manifest.json is damaged: its examples is "21"': _edit(examples="21"),
    "manifest.json is damaged: its max_steps is 1.5": _edit(max_steps=1.5),
    'manifest.json is damaged: its split is {"a":[1]}': _edit(split={"a": [1]}),
    "answers.0.npy is a pointer of Git LFS": lambda folder: (folder / "answers.0.npy").write_text(LFS),
    "answers.0.npy has the shape (11), not one of 2 axes": lambda folder: np.save(
        folder / "answers.0.npy", np.zeros(11, np.uint8)
    ),
    "answers.0.npy does not fit manifest.json": lambda folder: np.save(
        folder / "answers.0.npy", np.zeros((11, 9), np.uint8)
    ),
    "q_halt_logits.0.npy does not hold little-endian float32": lambda folder: np.save(
        folder / "q_halt_logits.0.npy", np.zeros(11)
    ),
    "answers_by_step.0.npy does not fit manifest.json": lambda folder: np.save(
        folder / "answers_by_step.0.npy", np.zeros((11, 3, 16), np.uint8)
    ),
    "steps.0.npy is truncated": lambda folder: (folder / "steps.0.npy").write_bytes(
        (folder / "steps.0.npy").read_bytes().replace(b"(11,)", b"(9999999999999,)".ljust(5))
    ),
    "examples.0.npy has the shape (-11)": lambda folder: (folder / "examples.0.npy").write_bytes(
        (folder / "examples.0.npy").read_bytes().replace(b"(11,), ", b"(-11,),")
    ),
}  # fmt: skip


def test_predictions_that_do_not_fit_are_refused(page, tmp_path):
    """All in one folder, chosen one after another; the first good one shows that the page goes on."""
    made = Made(PIPELINE)
    good = made.write(tmp_path / "all" / "step_99_preds")
    names = {f"step_{number}_preds": damage for number, damage in enumerate(DAMAGES)}
    for name, message in names.items():
        DAMAGES[message](Path(shutil.copytree(good, tmp_path / "all" / name)))
    open_both(page, PIPELINE, tmp_path / "all")
    assert page.texts("#predictions option") == [*names, "step_99_preds"]
    for name, message in names.items():
        page.select("#predictions", name)
        page.wait(lambda message=message: message in page.text("#messages"), message)
        assert page.chosen("#predictions") == "step_99_preds"
    assert page.boards() == ["Input", "Label", "Prediction"]  # of those opened before
    assert page.console() == []


def test_of_several_predictions_the_last_that_fits_is_shown(page, tmp_path):
    """Also when another dataset is chosen, and after others were refused."""
    folder, tokens = tmp_path / "all", np.tile(np.arange(1, 5), (3, 4))
    other = write_dataset(folder / "other", tokens, tokens, vocab_size=6)
    (other / "identifiers.json").unlink()
    made = [Made(shutil.copytree(PIPELINE, folder / "pipeline")), Made(folder / "pipeline", seed=1)]
    for step, some in enumerate([*made, made[0]], 1):
        some.write(folder / "run" / f"step_{step}_preds", ranks=1)
    (folder / "run" / "step_3_preds" / "manifest.json").unlink()
    page.load().open(folder)
    unfinished = "all/run/step_3_preds/manifest.json is missing: that evaluation was not finished"
    for line, said in zip(
        page.texts("#messages li"),
        ["identifiers.json is missing", unfinished, *["belongs to another dataset"] * 2],
        strict=True,
    ):
        assert said in line

    def check(step: int) -> None:
        sure = f"confidence {100 * made[step - 1].confidence[0]:.1f} %"
        page.wait(lambda: page.chosen("#predictions") == f"step_{step}_preds")
        page.go("dataset=pipeline&split=test")
        page.wait(lambda: page.texts("#confidence") == [sure], sure)
        assert page.texts("#predictions option") == ["step_1_preds", "step_2_preds", "step_3_preds"]
        page.find("#tab-answers").click()
        assert page.visible("#answers .row")  # which is not to be drawn where there are no predictions any more

    for _ in range(2):
        page.select("#dataset", "pipeline")
        check(2)
        assert page.text("#messages") == ""
        page.select("#dataset", "other")
        page.wait(lambda: page.boards() == ["Input", "Label"])
        assert page.text("#messages li").startswith("identifiers.json is missing")
    page.select("#dataset", "pipeline")
    check(2)
    page.choose(Made(other, split="train").write(tmp_path / "step_9_preds"))
    page.wait(lambda: "belongs to another dataset" in page.text("#messages"))
    page.select("#predictions", "step_1_preds")
    check(1)
    page.choose(folder / "run")
    page.wait(lambda: page.texts("#messages li") == [unfinished.removeprefix("all/")])
    check(2)


REFUSED = "train was built anew since, or is another; run evaluate.py again, or open the dataset that it read"


def test_predictions_of_a_dataset_that_was_built_anew_are_refused(page, tmp_path):
    """By the digests of its arrays, as Python does: the descriptions are equal."""
    rng = np.random.default_rng(0)
    for name in ("then", "now"):
        tokens = rng.integers(1, 6, (3, 16))
        write_dataset(tmp_path / name, tokens, tokens, vocab_size=6, names=["ä"] * 3)
    then, now = (content_digest(tmp_path / name / "train") for name in ("then", "now"))
    made = Made(tmp_path / "then", split="train")
    assert made.meta["digests"] and len(then) == 32
    page.load().open(tmp_path / "then")
    for step, (said, is_shown) in enumerate([(now, False), (now[:16], False), (then[:16], True), (then, True)]):
        name = f"step_{step}_preds"
        folder = made.write(tmp_path / name, ranks=1)
        _edit(data=said)(folder)
        page.choose(folder)
        if is_shown:
            page.wait(lambda name=name: page.chosen("#predictions") == name and "Prediction" in page.boards(), name)
            assert page.text("#messages") == ""
        else:
            page.wait(lambda name=name: page.text("#messages").startswith(f"{name} belongs to another dataset"), name)
            assert page.texts("#messages li")[0].endswith(REFUSED) and page.boards() == ["Input", "Label"]
    shutil.copytree(tmp_path / "then" / "train", tmp_path / "alone" / "train")
    page.load().open(tmp_path / "alone" / "train")  # identifiers.json is elsewhere
    page.choose(folder)
    page.wait(lambda: "Prediction" in page.boards())
    _edit(data=now)(folder)
    page.load().open(tmp_path / "then")
    page.js("Object.defineProperty(crypto, 'subtle', { value: undefined })")  # as where a page is not secure
    page.choose(folder)
    page.wait(lambda: "Prediction" in page.boards())
    describe_anew(tmp_path / "then" / "train", digests={"dataset.json": []})  # which does not say what was built
    page.load().open(tmp_path / "then")
    page.choose(folder)
    page.wait(lambda: "Prediction" in page.boards())


def compared_later(page: Page, made: Made, folder: Path) -> None:
    """Open predictions, and let comparing them wait."""
    page.load().open(made.dataset)
    page.hold("answers.", comparing=True)
    page.choose(made.write(folder, ranks=1))
    page.wait(lambda: listed(page) and page.js("return reading"))


def test_a_slow_click_in_a_list_counts_while_it_is_drawn_anew(page, tmp_path):
    made = Made(PIPELINE)
    compared_later(page, made, tmp_path / "step_1_preds")
    assert all(row.startswith("…") for row in listed(page))
    box = page.js("return document.querySelectorAll('#answers .row > :first-child')[3].getBoundingClientRect()")
    press = dict(x=box["x"] + 9, y=box["y"] + box["height"] / 2, button="left", clickCount=1)
    page.cdp("Input.dispatchMouseEvent", type="mousePressed", **press)
    page.let_read()
    page.wait(lambda: not any(row.startswith("…") for row in listed(page)))
    page.cdp("Input.dispatchMouseEvent", type="mouseReleased", **press)
    page.wait(lambda: page.text("#title") == "Puzzle 4")


def test_what_cannot_be_read_ends_the_comparing(page, tmp_path):
    folder = tmp_path / "step_1_preds"
    compared_later(page, Made(PIPELINE), folder)
    assert page.text("#compare") == "Stop comparing"
    (folder / "answers.0.npy").unlink()
    page.let_read()
    page.wait(lambda: "answers.0.npy can no longer be read; choose the folder again" in page.text("#messages"))
    assert page.text("#compare") == "Go on comparing" and "21 not compared yet" in page.text("#score")


def test_what_is_no_number_is_no_answer(page, tmp_path):
    """However right its cells are."""
    made = Made(PIPELINE)
    folder = made.write(tmp_path / "step_1_preds")
    q_halt = np.load(folder / "q_halt_logits.0.npy")
    q_halt[0], q_halt[1] = np.nan, np.inf
    np.save(folder / "q_halt_logits.0.npy", q_halt)
    open_both(page, PIPELINE, folder, "split=test&group=1")
    page.wait(lambda: "exactly right" in page.text("#score") and not page.visible("#compare"))
    assert page.text("#confidence").startswith("no answer")
    assert page.text("#verdict") == "No answer, which counts as wrong" and not bars(page) & RIGHT_AND_WRONG
    right = int((made.wrong == 0).sum() - (made.wrong[np.load(folder / "examples.0.npy")[:2]] == 0).sum())
    assert page.text("#score").startswith(f"{right} of 21 exactly right")
    assert page.console() == []


def test_predictions_without_their_dataset_are_not_shown(page, tmp_path):
    made = Made(PIPELINE)
    page.load().choose(made.write(tmp_path / "step_100_preds"))
    page.wait(lambda: "open the dataset that they were made from first" in page.text("#messages"))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_fits_the_screen(page, tmp_path, arc, width, dark):
    made = Made(arc)
    predictions = made.write(tmp_path / "step_100_preds")
    open_both(page, arc, predictions, "split=test&group=1&step=3", width=width, height=860, dark=dark)
    page.js("document.querySelector('input[value=wrong]').click()")
    page.js("document.querySelector('#answers .row').click()")
    page.settle()
    assert page.js("return document.documentElement.scrollWidth") <= width
    page.screenshot(f"predictions-{width}-{'dark' if dark else 'light'}")
