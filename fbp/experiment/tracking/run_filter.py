"""Filters and sort keys of runs, in the part of MLflow's search language that needs no database."""

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fbp.errors import InputError
from fbp.experiment.tracking.run_reader import FILTER_HINT, RecordedRun

_KINDS = ("metrics", "params", "tags", "attributes")
_KEY = r"(?:(metric|param|tag|attribute)s?\.)?(?:`([^`]+)`|([\w./\-]+))"
_CLAUSE = re.compile(
    rf"\s*{_KEY}\s*(!=|>=|<=|=|>|<|(?:I?LIKE)\b)\s*(?:'([^']*)'|\"([^\"]*)\"|([-+.\w]+))\s*",
    re.IGNORECASE,
)
_ORDER = re.compile(rf"\s*{_KEY}\s+(ASC|DESC)\s*", re.IGNORECASE)
_AND = re.compile(r"and\b", re.IGNORECASE)
_ATTRIBUTES: dict[str, Callable[[RecordedRun], str | int | None]] = {
    "run_id": lambda run: run.run_id,
    "run_name": lambda run: run.name,
    "status": lambda run: run.status,
    "artifact_uri": lambda run: run.artifact_uri,
    "start_time": lambda run: run.start,
    "end_time": lambda run: run.end,
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Key(NamedTuple):
    """A metric, param, tag or attribute of a run."""

    kind: str
    name: str

    def of(self, run: RecordedRun) -> str | float | None:
        """Return the value that `run` has; None if it has none."""
        if self.kind == "attributes":
            return _ATTRIBUTES[self.name](run)
        return getattr(run, self.kind).get(self.name)


class Clause(NamedTuple):
    """A comparison such as ``metrics.loss < 0.1``."""

    key: Key
    comparison: str
    text: str

    def holds(self, run: RecordedRun) -> bool:
        """Return whether `run` satisfies the clause; a run without the value does not."""
        value = self.key.of(run)
        if value is None:
            return False
        if isinstance(value, int | float):
            return _COMPARE[self.comparison](value, float(self.text))
        match self.comparison:
            case "=":
                return value == self.text
            case "!=":
                return value != self.text
            case "like":
                return _is_like(value, self.text)
            case _:
                return _is_like(value.lower(), self.text.lower())


def parse_filter(condition: str) -> list[Clause]:
    """Return the clauses of a filter, all of which must hold.

    Args:
        condition: clauses joined by ``and``; ``or`` and parentheses are not supported.

    Raises:
        InputError: if it cannot be read.
    """
    clauses: list[Clause] = []
    position = 0
    while position < len(condition) and condition.strip():
        match = _CLAUSE.match(condition, position)
        if match is None:
            raise _problem(condition, "Invalid clause(s) in filter string")
        clauses.append(_clause(condition, match))
        position = match.end()
        if position < len(condition):
            joint = _AND.match(condition, position)
            if joint is None:
                raise _problem(condition, "expected 'and' between clauses")
            position = joint.end()
            if not condition[position:].strip():
                raise _problem(condition, "expected a clause after 'and'")
    return clauses


def sort_runs(runs: Sequence[RecordedRun], order: Sequence[str]) -> list[RecordedRun]:
    """Return the runs sorted by keys such as ``"metrics.loss ASC"``; missing values come last.

    Args:
        runs: the runs; their order decides between equal keys.
        order: the keys, the most important first.

    Raises:
        InputError: if a key cannot be read.
    """
    result = list(runs)
    for text in reversed(order):
        match = _ORDER.fullmatch(text)
        if match is None:
            raise _problem(f"--sort {text}", "Invalid order_by clause")
        key = _key(f"--sort {text}", *match.group(1, 2, 3))
        has_value = [run for run in result if not _is_missing(key.of(run))]
        missing = [run for run in result if _is_missing(key.of(run))]
        descending = match.group(4).lower() == "desc"
        # `key` holds numbers or texts, never both
        has_value.sort(key=key.of, reverse=descending)  # type: ignore[arg-type]
        result = has_value + missing
    return result


def _clause(condition: str, match: re.Match[str]) -> Clause:
    kind, quoted, plain, comparison, *texts = match.groups()
    key = _key(condition, kind, quoted, plain)
    text = next(part for part in texts if part is not None)
    numeric = key.kind == "metrics" or key.name in ("start_time", "end_time")
    if numeric and not _is_number(text):
        raise _problem(condition, f"expected a number after {key.name}, got {text!r}")
    allowed = tuple(_COMPARE) if numeric else ("=", "!=", "like", "ilike")
    if comparison.lower() not in allowed:
        raise _problem(condition, f"expected one of {', '.join(allowed)}, got {comparison!r}")
    return Clause(key, comparison.lower(), text)


def _key(where: str, kind: str | None, quoted: str | None, plain: str | None) -> Key:
    key = Key(f"{(kind or 'attribute').lower()}s", quoted or plain or "")
    if key.kind == "attributes" and key.name not in _ATTRIBUTES:
        names = ", ".join(_ATTRIBUTES)
        raise _problem(where, f"Invalid attribute key {key.name!r}, expected one of {names}")
    return key


def _problem(where: str, reason: str) -> InputError:
    return InputError(f"{where}: {reason}; {FILTER_HINT}")


def _is_missing(value: str | float | None) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_like(text: str, pattern: str) -> bool:
    """Return whether `text` matches a pattern of SQL, in which % stands for any characters."""
    escaped = re.sub(r"([*?[])", r"[\1]", pattern)
    return fnmatch.fnmatchcase(text, escaped.replace("%", "*").replace("_", "?"))
