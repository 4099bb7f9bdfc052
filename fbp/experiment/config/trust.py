"""What the reader of a record trusts: exact references, and files of code that he or she gives.

Nothing is trusted because it is installed, imported, or in the current folder.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fbp.errors import InputError

FILE_REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)", re.DOTALL)
"""The form of a reference to a file."""


class Trust(NamedTuple):
    """What a record may name beside fbp's own catalogue.

    Attributes:
        references: exactly these, ``package.module:name`` or ``/absolute/own.py:name``.
        code: files, or folders of a package or of files. A record may name what is defined in them.
        folders: where modules of `references` are searched last.
    """

    references: frozenset[str] = frozenset()
    code: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()

    def joined(self, other: "Trust") -> "Trust":
        """Return what one of the two trusts."""
        return Trust(
            self.references | other.references,
            tuple(dict.fromkeys((*self.code, *other.code))),
            tuple(dict.fromkeys((*self.folders, *other.folders))),
        )

    def to_json(self) -> dict[str, list[str]]:
        """Return this as JSON's types."""
        return {
            "references": sorted(self.references),
            "code": [str(path) for path in self.code],
            "folders": [str(path) for path in self.folders],
        }

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Trust":
        """Return what :meth:`to_json` gave.

        Raises:
            ValueError: if `entries` has another form.
        """
        lists = [entries.get(key) for key in ("references", "code", "folders")]
        for texts in lists:
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("expected three lists of texts")
        references, code, folders = (list(map(str, texts or ())) for texts in lists)
        return cls(frozenset(references), tuple(map(Path, code)), tuple(map(Path, folders)))


NOTHING = Trust()


def is_module_reference(name: str) -> bool:
    """Return whether a text has the form ``package.module:name``."""
    source, colon, attribute = name.partition(":")
    parts = (*source.split("."), attribute)
    return bool(colon) and all(part.isidentifier() for part in parts)


def trust_of(
    references: str | Iterable[str] = (), code: str | os.PathLike[str] | Iterable[Any] | None = ()
) -> Trust:
    """Return what a user trusts, checked.

    Args:
        references: the references that a record may name.
        code: files or folders whose names a record may name.

    Raises:
        InputError: if a reference has another form, names one of Python's own modules, or if there
            is no such file.
    """
    texts = [references] if isinstance(references, str) else _listed("trust", references)
    paths = [code] if isinstance(code, str | os.PathLike) else _listed("code", code or ())
    return Trust(frozenset(map(_checked_reference, texts)), tuple(map(_checked_code, paths)))


def _listed(option: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise InputError(
            f"{option}: expected a list of texts, got {type(values).__name__}"
        ) from None


def _checked_reference(name: Any) -> str:
    match = FILE_REFERENCE.fullmatch(name) if isinstance(name, str) else None
    if match:
        return f"{_checked_code(match['path'])}:{match['name']}"
    if not isinstance(name, str) or not is_module_reference(name):
        raise InputError(f"trust {name!a}: expected package.module:name")
    if name.partition(":")[0].partition(".")[0] in sys.stdlib_module_names:
        raise InputError(f"trust {name!r}: expected code of your own, got one of Python's modules")
    return name


def _checked_code(path: Any) -> Path:
    try:
        resolved = Path(path).resolve()
        is_code = resolved.is_dir() or (resolved.is_file() and resolved.suffix == ".py")
    except (TypeError, ValueError, OSError):
        raise InputError(f"code {path!r}: expected a Python file, or a folder of them") from None
    if not is_code:
        problem = "expected a Python file, or a folder of them"
        raise InputError(f"code {str(path)!r}: {problem if resolved.exists() else 'no such file'}")
    return resolved


def file_for(source: Path, name: str) -> Path | None:
    """Return the file of the code that a user gives for a reference of a record.

    Args:
        source: a file, which stands for a file or module of its name; or a folder, which stands for
            the package that it is, or for the files and packages in it. Resolved.
        name: the reference.

    Returns:
        The file; None if `source` has none for that reference.
    """
    match = FILE_REFERENCE.fullmatch(name)
    if match:
        path = Path(match["path"])
        if path.is_absolute() and path.is_file() and path.resolve().is_relative_to(source):
            return path.resolve()  # what this function gave for the name of a module
        file_name = match["path"].replace("\\", "/").rpartition("/")[2]
        candidate = source / file_name if source.is_dir() else source
        return candidate.resolve() if candidate.is_file() and candidate.name == file_name else None
    parts = name.partition(":")[0].split(".")
    if source.is_dir():
        inside = parts
        if (source / "__init__.py").is_file():
            if parts[0] != source.name:
                return None
            inside = parts[1:]
        stem = source.joinpath(*inside)
        options = [stem / "__init__.py", *([stem.with_name(f"{stem.name}.py")] if inside else [])]
        return next((path.resolve() for path in options if path.is_file()), None)
    return source if parts == [source.stem] or parts == package_parts(source) else None


def package_parts(path: Path) -> list[str]:
    """Return the parts of the dotted name of a file in its package."""
    parts, folder = ([] if path.name == "__init__.py" else [path.stem]), path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return parts
