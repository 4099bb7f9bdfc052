"""The command line of further Python processes."""

import sys
from pathlib import Path


def python_with_code(code: str) -> list[str]:
    """Return the command line of a Python process that executes `code`, a text of fbp's own.

    Unlike with a bare ``python -c``, the current folder is not searched for modules, where any file
    could take the place of an installed one. fbp itself is found where it is now.
    """
    parent = str(Path(__file__).resolve().parent.parent)
    return [sys.executable, "-P", "-c", f"import sys; sys.path.append({parent!r}); {code}"]
