"""JSON and TOML that anybody may have written, read within bounds of size and depth.

What exceeds a bound is a ValueError like any other damage, and no parser is given it.
"""

import json
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

LARGEST_TOML = 4 * 2**20
"""Bytes of a configuration."""
LARGEST_JSON = 64 * 2**20
"""Bytes of a file of facts."""

_DEEPEST = 40  # nested tables and lists
# a parser's time grows with the square of the parts of a dotted key
_LONG_KEY = re.compile(r"(?:[\w-]{1,200}[ \t]*\.[ \t]*){100}")


def read_bytes(path: Path, largest: int) -> bytes:
    """Return a file's content.

    Args:
        path: the file.
        largest: the number of bytes that it may have.

    Raises:
        ValueError: if it has more.
        OSError: if it cannot be read.
    """
    facts = path.stat()
    if not (
        stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)
    ):  # a pipe would be waited for
        raise ValueError("it is no plain file")
    if facts.st_size > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return path.read_bytes()


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text; raise ValueError if it is none, or nested too deeply."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Return the value in a JSON file.

    Raises:
        ValueError: if it is damaged, too large, or nested too deeply.
        OSError: if it cannot be read.
    """
    return parse_json(read_bytes(path, largest))


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table of a TOML text; raise ValueError if it is none, or nested too deeply."""
    if _LONG_KEY.search(text):
        raise _too_deep()
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(table)
    return table


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        UnicodeDecodeError: if it is not in UTF-8.
        ValueError: if it is damaged, too large, or nested too deeply.
        OSError: if it cannot be read.
    """
    return parse_toml(read_bytes(path, LARGEST_TOML).decode().replace("\r\n", "\n"))


def _too_deep() -> ValueError:
    return ValueError("it is nested too deeply")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [child for part in parts for child in part if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()
