"""What a run needs beside the model. Every command imports this package first."""

import os
import sys


def _leave_out_the_current_folder() -> None:
    """Take the current folder off Python's path in this repository's own commands.

    Python puts it first for `python -m …`, and for an empty entry of PYTHONPATH: in a run folder its `numpy.py`, if
    there were one, would be NumPy. It stays where PYTHONPATH names it in full, and where it is the repository.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    if sys.argv[:1] != ["-m"] and os.path.dirname(os.path.abspath(main)) != root:  # "-m": until the module is found
        return  # somebody else's program, which imports us
    wanted = {root, *filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))}
    try:
        sys.path[:] = [entry for entry in sys.path if entry in wanted or os.path.abspath(entry) != os.getcwd()]
    except OSError:  # the current folder has been removed
        return


_leave_out_the_current_folder()
