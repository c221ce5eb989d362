"""Modules found by name: python -m pytest tests/test_extension.py"""

import os
import sys

import pytest

import extension
import training
from errors import UserError
from extension import import_below, modules_below
from tests.launch import ROOT, run


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder on Python's path with a `models` of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "models/package_elsewhere").mkdir(parents=True)
    (tmp_path / "models/package_elsewhere/__init__.py").write_text("")
    (tmp_path / "models/needy_elsewhere.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "models/act.py").write_text("raise AssertionError('the repository has one of this name')\n")
    return tmp_path / "models"


def test_a_module_that_lacks_something_itself_says_what(elsewhere):
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        import_below("models", "needy_elsewhere")


def test_a_module_or_a_package_that_is_not_there_is_none(elsewhere):
    for name in ("nothing_elsewhere", "nothing_elsewhere.below", "package_elsewhere.nothing"):
        assert import_below("models", name) is None


def test_the_repository_comes_first(elsewhere):
    assert import_below("models", "act").ACTModel


def test_modules_are_files_not_packages(elsewhere):
    names = modules_below("models")
    assert names == sorted(names)
    assert {"act", "losses", "needy_elsewhere"} <= set(names)
    assert not {"hrm", "package_elsewhere"} & set(names)


@pytest.mark.parametrize("name", ["../act", "", "act;", ".act", "a..b", "_private", "9"])
def test_what_is_no_name_of_a_module_is_refused(name):
    with pytest.raises(UserError, match="is not the name of a module below models/"):
        import_below("models", name)


@pytest.mark.parametrize(
    ("entry", "python_path", "found"),
    [
        ("{here}", "", False),  # `python -m`, or an empty entry of PYTHONPATH
        ("", "", False),
        (".", ".", False),
        ("elsewhere", "elsewhere", False),
        ("{here}", "{here}", True),
        ("{here}/elsewhere", "", True),  # a program may name a folder too
    ],
)
def test_what_lies_in_the_current_folder_by_chance_is_not_imported(monkeypatch, tmp_path, entry, python_path, found):
    for folder in (tmp_path, tmp_path / "elsewhere"):
        (folder / "models").mkdir(parents=True)
        (folder / "models/by_chance.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extension, "_CURRENT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, entry.format(here=tmp_path)])
    monkeypatch.setenv("PYTHONPATH", python_path.format(here=tmp_path))
    package = sys.modules["models"]
    monkeypatch.setattr(package, "__path__", list(package.__path__))
    try:
        assert (import_below("models", "by_chance") is not None) == found
        assert ("by_chance" in modules_below("models")) == found
    finally:
        sys.modules.pop("models.by_chance", None)


@pytest.mark.parametrize(
    ("argv", "main", "python_path", "stays"),
    [
        (["-m"], None, "", False),
        (["-m"], None, "{here}", True),
        (["{root}/pretrain.py"], "{root}/pretrain.py", os.pathsep, False),
        (["{here}/mine.py"], "{here}/mine.py", "", True),  # somebody else's program
        (["{root}/.venv/bin/pytest"], "{root}/.venv/bin/pytest", "", True),
    ],
)
def test_a_command_does_not_import_from_the_current_folder(monkeypatch, tmp_path, argv, main, python_path, stays):
    fill = dict(root=ROOT, here=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [arg.format(**fill) for arg in argv])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", main and main.format(**fill), raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", str(ROOT), "/usr/lib"])
    monkeypatch.setenv("PYTHONPATH", python_path.format(**fill))
    training._leave_out_the_current_folder()
    rest = [str(ROOT), "/usr/lib"]
    assert [entry for entry in sys.path if entry in rest] == rest
    assert (str(tmp_path) in sys.path) == stays


@pytest.mark.slow
def test_a_run_folder_s_numpy_is_not_numpy(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported by accident')")
    done = run("-m", "training.report", "--help", cwd=tmp_path, PYTHONPATH=f"{os.pathsep}{ROOT}")
    assert "run folders" in done.stdout
