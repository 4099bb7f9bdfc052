"""The check for packages beyond jax and numpy, and the line that says how to install them."""

import importlib.util

from fbp.errors import MissingDependency

RUNNER = ("pydantic", "tomli_w", "matplotlib", "rich")
"""What :mod:`fbp.experiment` imports; mlflow is asked for where a run or a command speaks to it."""

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "tomli_w": "tomli-w"}


def require(user: str, *modules: str) -> None:
    """Raise one line that says what to install, unless all modules can be imported; import nothing.

    Args:
        user: what needs the modules, as its caller writes it, such as ``fbp.datasets.iris``.
        modules: names of top-level modules that the extra ``run`` installs.

    Raises:
        MissingDependency: a module is not installed.
    """
    missing = [_DISTRIBUTIONS.get(name, name) for name in modules if not is_installed(name)]
    if missing:
        raise MissingDependency(user, missing)


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported; import nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a finder that refuses, a module without a spec
        return False
