"""Modules found by name: python -m pytest tests/test_extension.py"""

import pytest

from errors import UserError
from extension import import_below, modules_below


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
