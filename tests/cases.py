"""Tables of cases of which the fast tests run only some."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return cases for ``parametrize``, all of them slow except those named."""
    cases = list(cases)
    assert set(fast) <= set(cases)
    return [
        case if case in fast else pytest.param(case, marks=pytest.mark.slow, id=str(case))
        for case in cases
    ]
