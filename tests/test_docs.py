"""README.md, CLAUDE.md and docs/ against the program: every command, link and file that they name.

python -m pytest tests/test_docs.py
"""

import argparse
import functools
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest

from errors import UserError
from scripts.pictures import PicturesConfig, make
from tests.launch import ONE_THREAD_NO_WANDB, ROOT
from tests.runs import pretrain
from training.command_line import compose_run
from training.config import from_hydra

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None

PAGES = [
    ROOT / "README.md",
    ROOT / "CLAUDE.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "pretrained").rglob("*.md")),
]
TYPED = {"docs/own-puzzle.md": "tests/test_own_puzzle_docs.py"}  # pages whose blocks another test types
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")[
    :-1
]
CODE = [
    path for path in TRACKED if path.endswith((".py", ".sh", ".yaml", ".html", ".js", ".sbatch", ".toml", "Makefile"))
]


# Commands are started as modules that may be imported already.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


# What the pages say


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """The fenced and the indented blocks: language (None: indented) and lines."""
    lines = iter(text.split("\n"))
    block: list[str] = []
    after_blank = True
    for line in lines:
        if line.startswith("```"):
            fenced = []
            for inside in lines:
                if inside.startswith("```"):
                    break
                fenced.append(inside)
            yield line[3:], fenced
        elif line.startswith("    ") and (block or after_blank):
            block.append(line[4:])
            continue
        elif block and not line:
            block.append("")
            continue
        if block:
            yield None, block
            block = []
        after_blank = not line
    if block:
        yield None, block


STARTS = r"(?:\.venv/bin/)?(?:python3?|pip)|make|bash|torchrun|uv|git|sbatch|podman-hpc|shifterimg|docker|hf|export"
COMMAND = re.compile(rf"(?:\w+=\S+ )*(?:{STARTS})\b(?! *=)")


def commands(page: Path) -> Iterator[str]:
    """Each command of the page's blocks as one line, and those that stand in the text as code."""
    text = page.read_text()
    if name_of(page) not in TYPED:
        for language, lines in blocks(text):
            joined = re.sub(r" *\\\n *", " ", "\n".join(lines)).split("\n")
            typed = [line for line in joined if line and not line.startswith("#")]
            if language in ("sh", "bash") or (not language and any(map(COMMAND.match, typed))):
                yield from (part for line in typed for part in re.split(r" && ", line))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = "\n".join(line for line in prose.split("\n") if not line.startswith("    "))
    for span in re.findall(r"`([^`]+)`", prose):
        if COMMAND.match(span) and " " in span:
            yield " ".join(span.split())


ALL_COMMANDS = [(name_of(page), command) for page in PAGES for command in commands(page)]


# What each command is checked as


class Parsed(BaseException):
    """Ends a command where its work would begin."""


def stop_at_work(patch: pytest.MonkeyPatch) -> None:
    """Let a command read its options, as typed, and no more."""
    import dataset.cli
    import training.options

    def then_stop(read: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            read(*args, **kwargs)
            raise Parsed

        return wrapper

    def builder(build: Callable) -> None:
        @functools.wraps(build)
        def stop(*_, **__):
            raise Parsed

        run_builder(stop)

    run_builder = dataset.cli.run_builder
    patch.setattr(training.options, "from_cli", then_stop(training.options.from_cli))
    patch.setattr(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args))
    patch.setattr(dataset.cli, "run_builder", builder)


def start(words: list[str]) -> None:
    """`python words…` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in ONE_THREAD_NO_WANDB.items():
            patch.setenv(key, value)
        if words[0] == "-m":
            patch.setattr("sys.argv", words[1:])
            runpy.run_module(words[1], run_name="__main__")
        else:
            patch.setattr("sys.argv", words)
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def parsed(words: list[str]) -> None:
    """The command takes these options: it is stopped when it has read them."""
    at = 2 if words[0] == "-m" else 1
    if words[at:] == []:
        return  # the program, named without options
    if "…" in words:
        words = [*words[:at], *ARGUMENTS_LEFT_OUT.get(words[at - 1], []), *(word for word in words[at:] if word != "…")]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        stop_at_work(patch)
        try:
            start(words)
        except Parsed:
            return
        except SystemExit as stopped:
            if "--help" in words and not stopped.code:
                return
            pytest.fail(f"exit code {stopped.code}: {said.getvalue().strip()}")
    pytest.fail("it has not read its options by from_cli, run_builder or argparse")


def composed(words: list[str]) -> None:
    """The configuration of this training run exists, every key and value of it."""
    arguments = [word for word in words[1:] if word != "…"]
    if "--help" not in arguments:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ROOT / "examples"))  # docs/extending.md puts it on PYTHONPATH
            from_hydra(compose_run(str(ROOT / "config"), arguments))


def helped(words: list[str]) -> None:
    """It takes the keys of a training run, or nothing; `--help` tells that it is there."""
    composed(["pretrain.py", *words[2:]])
    with redirect_stdout(io.StringIO()) as said:
        try:
            start([*words[:2], "--help"])
        except SystemExit as stopped:
            assert not stopped.code  # noqa: PT017
    assert said.getvalue()


def measured(words: list[str]) -> None:
    check(words[2:])


def there(words: list[str]) -> None:
    """A script without options."""
    assert (ROOT / words[0]).is_file()


def of_pytest(words: list[str]) -> None:
    """These files of tests are there."""
    assert all((ROOT / word).is_file() for word in words[2:] if word.startswith("tests/"))


def others(words: list[str]) -> None:
    """Somebody else's program: nothing to check here."""


ARGUMENTS_LEFT_OUT = {  # by `…`: what the command cannot do without
    "evaluate.py": ["checkpoint=x"], "evaluators.arc": ["dataset=x", "predictions=x"],
    "evaluators.search": ["checkpoint=x"], "solve.py": ["puzzle=x"],
}  # fmt: skip
PYTHON = {
    "pretrain.py": composed,
    "evaluate.py": parsed,
    "solve.py": parsed,
    "dataset/build_arc_dataset.py": parsed,
    "dataset/build_grid_dataset.py": parsed,
    "dataset/build_maze_dataset.py": parsed,
    "dataset/build_sudoku_dataset.py": parsed,
    "dataset.check": parsed,
    "evaluators.arc": parsed,
    "evaluators.figures": parsed,
    "evaluators.search": parsed,
    "training.hub": parsed,
    "training.report": parsed,
    "benchmarks.evaluate": parsed,
    "benchmarks.step": parsed,
    "benchmarks.family": helped,
    "benchmarks.flops": helped,
    "scripts/build_live_page.py": parsed,
    "scripts.draw_recursions": parsed,
    "scripts.measure": measured,
    "scripts.pictures": parsed,
    "scripts.measure_dataset": parsed,
    "scripts.measure_growth": parsed,
    "scripts.measure_predictions": parsed,
    "scripts.measure_voting": parsed,
    "scripts.speedrun": parsed,
    "scripts.study": parsed,
    "scripts.search_study": parsed,
    "scripts/share_looks.py": there,
    "pytest": of_pytest,
    "venv": others,
}


def check_python(words: list[str]) -> None:
    if not words:
        return  # the bare word
    program = words[1] if words[0] == "-m" else words[0]
    assert program in PYTHON, f"tests/test_docs.py does not know how to check python {program}"
    PYTHON[program](words)


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    known = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert set(targets) <= set(known)


def check_bash(words: list[str]) -> None:
    if words[0] == "benchmarks/gpu.sh":
        parts = re.search(r"^PARTS=\((.*)\)", (ROOT / words[0]).read_text(), re.MULTILINE)[1]
        assert set(words[1:]) <= set(parts.split())
    else:
        assert words[:2] == ["scripts/slurm/train.sbatch", "--dry-run"], "not known how to check it"
        subprocess.run(["bash", *words], cwd=ROOT, check=True, capture_output=True)
        composed(["pretrain.py", *words[words.index("--") + 1 :]])


def check_sbatch(words: list[str]) -> None:
    """What follows the script, as a dry run."""
    if "…" not in words:
        script = words.index("scripts/slurm/train.sbatch")
        check_bash([words[script], "--dry-run", *words[script + 1 :]])


def check_torchrun(words: list[str]) -> None:
    while words[0].startswith("--"):
        words = words[1 if words[0] == "--standalone" else 2 :]
    check_python(words)


def check_pip(words: list[str]) -> None:
    """The files and extras are there."""
    for option, value in pairwise(words):
        if option in ("-r", "-c"):
            assert (ROOT / value).is_file()
    if "-e" in words and tomllib:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\[(.*)\]", words[words.index("-e") + 1])
        assert {name for found in extras for name in found.split(",")} <= project["optional-dependencies"].keys()


PROGRAMS = {
    "python": check_python,
    "python3": check_python,
    "make": check_make,
    "bash": check_bash,
    "sbatch": check_sbatch,
    "torchrun": check_torchrun,
    "pip": check_pip,
    ".": others,
    "export": others,
    "git": others,
    "hf": others,
    "podman-hpc": others,
    "shifterimg": others,
    "uv": others,
}
PLACES = {
    "<n>": "60", "<kind>": "sudoku", "<options>": "--seed 1", "<folder or file>": "x", "<user/name>": "a/b",
    "<name>": "x", " N ": " 7 ", "arch=…": "arch=trm", "COMMAND…": "evaluate.py …",
}  # fmt: skip


def words_of(command: str, places: dict[str, str] = {}) -> list[str]:  # noqa: B006
    """Its words, with something in the `places` that the reader fills in."""
    command = re.sub(r" \[[^\[\]]* …\]", "", command)  # may be left out
    for place, value in (*places.items(), *PLACES.items()):
        command = command.replace(place, value)
    command = re.sub(r"<[a-z_ ]+>", "x", command)
    return shlex.split(re.sub(r"=…", "=x", command), comments=True)


def check(words: list[str]) -> None:
    """As `python words…`, or as it is."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    if words[0] == "-m" or words[0].endswith(".py"):
        check_python(words)
    else:
        assert words[0] in PROGRAMS, f"tests/test_docs.py does not know how to check {words[0]}"
        PROGRAMS[words[0]](words[1:])


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS)
def test_the_command_exists_with_these_options(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(words_of(command))


@pytest.mark.parametrize(
    "command",
    [
        "python pretrain.py +experiment=arc_3",
        "python pretrain.py learning_rate=1",
        "python evaluate.py checkpoint=x halt=never",
        "python dataset/build_sudoku_dataset.py --siez 4",
        "python -m evaluators.figures steeps checkpoint=x",
        "python -m training.hub throw x",
        "python -m scripts.measure evaluate.py halt=never",
        "python -m benchmarks.flops arch=none",
        "python scripts/unknown.py",
        "torchrun --nproc-per-node 8 evaluate.py chekpoint=x",
        "make dmeo",
        "bash benchmarks/gpu.sh everything",
        "sbatch scripts/slurm/train.sbatch -- +experiment=arc_3",
        "pip install -r requirement.txt",
        "conda install x",
    ],
)
def test_a_command_that_does_not_exist_is_found(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception, subprocess.CalledProcessError)):
        check(words_of(command))


# What those that read a run print, and what they leave


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A run of two steps on 4×4 Sudokus."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    pretrain(folder, epochs=1, eval_interval=1, load_checkpoint=None)
    return folder


LESS = {"evaluators.search": ["max_examples=2", "depth=2"]}
RUN = {  # of these every command that reads <run> is run: something that it says
    "evaluate.py": r"eval/exact_accuracy",
    "evaluators.figures": r"\.png",
    "evaluators.search": r"single pass",
    "solve.py": r"valid: ",
    "training.report": r"learning_curves\.png|\.html",
}
NOT_RUN = re.compile("torchrun|scripts.measure|file=|task=")
READ_A_RUN = [
    (page, command)
    for page, command in ALL_COMMANDS
    if "<run>" in command and any(program in command for program in RUN) and not NOT_RUN.search(command)
]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("page", "command"), READ_A_RUN)
def test_the_command_does_its_work_on_a_run(page, command, toy, tmp_path, monkeypatch):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(toy, run)
    shutil.copytree(toy, other)
    (checkpoint,) = run.glob("step_*")
    monkeypatch.chdir(tmp_path)
    places = {"<run> <run>": f"{run} {other}", "<run>": str(run), "<n>": checkpoint.name.removeprefix("step_")}
    _, *words = (word for word in words_of(command, places) if word != "…")
    program = words[1] if words[0] == "-m" else words[0]
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        try:
            start([*words, *LESS.get(program, [])])
        except SystemExit as stopped:
            assert not stopped.code, said.getvalue()  # noqa: PT017
    assert re.search(RUN[program], said.getvalue()), said.getvalue()


# Links and files


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [link for link in found if not link.startswith(("http://", "https://"))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert path == "" or target.is_dir() or target.relative_to(ROOT).as_posix() in TRACKED, (
            f"{link} is not committed"
        )
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page():
    reached = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= reached


def test_the_readme_is_short():
    words = [word for word in (ROOT / "README.md").read_text().split() if any(map(str.isalnum, word))]
    assert len(words) < 950  # about 900


def test_pictures_are_small():
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".gif", ".jpg", ".webp")]
    assert sum(path.stat().st_size for path in pictures) < 3e6


@pytest.mark.parametrize(
    ("names", "message"),
    [(["lve.png"], "there is no picture lve.png"), (["report.png"], "none holds no predictions"),
     (["live.png"], "none.html is missing")],
)  # fmt: skip
def test_a_picture_that_cannot_be_made_is_refused(names, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make(PicturesConfig(names=names, out=".", run="none", live="none.html"))
    assert not list(tmp_path.iterdir())


FILE = re.compile(r"[\w./*-]+\.(?:py|md|html|ipynb|yaml|sh|sbatch|json|jsonl|txt|png|gif|toml|safetensors)")
USERS = {  # the reader's own, or another program's
    "train.csv", "test.csv", "pairs.jsonl", "steps.gif", "sample_submission.json", "x_challenges.json",
    "x_solutions.json", "arc-agi_test_challenges.json", "arc-agi_training_challenges.json", "maze.gif", "maze.txt",
    "puzzle.txt", "submission.json", "voted.json", "checkpoint.py", "numpy.py",
}  # fmt: skip


@functools.cache
def program_text() -> str:
    return "\n".join(
        (ROOT / path).read_text() for path in CODE if (ROOT / path).is_file() and not path.startswith("tests/")
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_is_named_is_there_or_is_written_by_the_program(page):
    text = page.read_text()
    spans = [word for span in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[\s,=]+", span)]
    for name in spans:
        if not FILE.fullmatch(name) or name in USERS or name.startswith(("data/", "checkpoints/", "mine/")):
            continue
        places = (ROOT / name, page.parent / name)
        known = any(place.exists() for place in places) or any(fnmatch(path, name) for path in TRACKED)
        assert known or Path(name).name in program_text() or any(path.endswith(f"/{name}") for path in TRACKED), name


def tree() -> Iterator[tuple[str, str]]:
    """The files of the tree in docs/layout.md, each with the folder that it stands in."""
    (block,) = [lines for language, lines in blocks((ROOT / "docs/layout.md").read_text()) if language == ""]
    folder = ""
    for line in block:
        names = re.split(r"  +", line.strip())[0]
        inside = line.startswith("  ")
        if not inside:
            folder = names if names.endswith("/") and " " not in names else ""
        for name in re.split(r",? +|, ", names):
            yield (folder if inside else "", name.strip())


def test_the_tree_is_that_of_the_repository():
    named = [(folder, name) for folder, name in tree()]
    for folder, name in named:
        assert list(ROOT.glob(folder + name)), f"{folder}{name} is in docs/layout.md and not in the repository"
    patterns = [folder + name for folder, name in named]
    listed = {folder for folder, name in named if folder}  # whose files are named one by one
    for path in TRACKED:
        folder, _, name = path.rpartition("/")
        described = (folder == "" and path.endswith((".py", ".html", ".ipynb"))) or f"{folder}/" in listed
        if described and path.endswith((".py", ".html", ".ipynb")) and name != "__init__.py":
            assert any(fnmatch(path, pattern) for pattern in patterns), f"{path} is not in docs/layout.md"


# What the README and docs/solving.md show of the model in pretrained/


def test_the_readmes_python_prints_what_it_says(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    (code,) = (lines for language, lines in blocks((ROOT / "README.md").read_text()) if language == "python")
    with redirect_stdout(io.StringIO()) as printed:
        exec("\n".join(code), {})
    answer, row, halted, first, confidence, valid = printed.getvalue().splitlines()
    said = "\n".join(code)
    assert len(answer) == 81
    assert f"the first row: {row}" in said
    assert len(first) == 81
    assert first != answer
    assert f"# {halted}: it stopped" in said
    assert f"# {confidence}: how sure" in said
    assert f"# {valid}: it obeys" in said


def test_the_readmes_pairs_become_a_dataset(tmp_path, monkeypatch):
    """As they stand there, by the command that stands there; each is turned by 180°, as the text says."""
    monkeypatch.chdir(tmp_path)
    pairs = [line for _, lines in blocks((ROOT / "README.md").read_text()) for line in lines if '"input":' in line]
    for pair in map(json.loads, pairs):
        assert "".join(pair["output"]) == "".join(pair["input"])[::-1]
    Path("pairs.jsonl").write_text("\n".join(pairs))
    (build,) = (command for command in commands(ROOT / "README.md") if "pairs.jsonl" in command)
    with redirect_stdout(io.StringIO()) as said:
        start(words_of(build)[1:])
    assert re.search(rf"train: [\d,]+ examples in {len(pairs) - 1} groups; test: 1 examples", said.getvalue())


def test_the_boards_are_those_that_the_command_prints(monkeypatch, one_thread):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/solving.md").read_text()
    command, *_ = commands(ROOT / "docs/solving.md")
    (boards,) = (lines for _, lines in blocks(text) if lines[0].startswith("puzzle "))
    monkeypatch.setenv("COLUMNS", "100")
    with redirect_stdout(io.StringIO()) as printed:
        start(words_of(command)[1:])
    assert "\n".join(boards).strip() in printed.getvalue()
    assert command in (ROOT / "README.md").read_text()
