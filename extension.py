"""Architectures and kinds of puzzle are found by name: a module below `models/` or `puzzles/`.

Folders of that name in any directory on Python's path are searched too, after the repository's own. So your own
`<folder>/models/<module>.py` needs nothing but `PYTHONPATH=<folder>`. The folder is named in full: what happens to lie
in the current one, which Python has on its path for `python -m …` or an empty entry of PYTHONPATH, is nobody's choice.
"""

import importlib
import os
import pkgutil
import re
import sys
from types import ModuleType

from errors import UserError

try:
    _CURRENT = os.getcwd()  # when the command started
except OSError:  # it has been removed
    _CURRENT = None
_MODULE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")


def import_below(package: str, module: str) -> ModuleType | None:
    """Import `<package>.<module>`; None if there is no such module. Raises `UserError` for an impossible name."""
    if not _MODULE.fullmatch(module):
        raise UserError(f"'{module}' is not the name of a module below {package}/")
    _search_path(package)
    name = f"{package}.{module}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise  # the module is there, but lacks something itself


def modules_below(package: str) -> list[str]:
    """The names of the modules directly below `package`, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(_search_path(package)) if not module.ispkg)


def _search_path(package: str) -> list[str]:
    """The package's folders, looked up anew: a directory may have joined Python's path since it was imported."""
    loaded = importlib.import_module(package)
    for folder in _named_folders():
        place = os.path.join(folder, package)
        if os.path.isdir(place) and place not in loaded.__path__:
            loaded.__path__.append(place)
    return loaded.__path__


def _named_folders() -> list[str]:
    """The directories on Python's path that somebody has named."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [entry for entry in sys.path if os.path.isabs(entry) and (entry != _CURRENT or entry in named)]
