"""References to a user's own code, ``package.module:name`` or ``PATH/own.py:name``.

To resolve a reference executes code, so who wrote it matters. A configuration may name modules that
Python can import. A file may be named by the person who runs the command only, on the command line
(:func:`trust_files_in`). A record, which anybody may have written, may name installed modules only,
or the code that the user gives for it (:func:`reading_record`).
"""

import contextlib
import contextvars
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fbp.errors import InputError, first_line

_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")


class _Policy(NamedTuple):
    """Which references are trusted.

    Attributes:
        is_record: the configuration comes from a record: its modules must be installed.
        trusts_files: the configuration may name files itself.
        code: the file or package that the user gives for the code of a record.
        imported: top-level modules that the user has imported.
    """

    is_record: bool = False
    trusts_files: bool = False
    code: Path | None = None
    imported: frozenset[str] = frozenset()


_TRUST_MODULES = _Policy()
_policy = contextvars.ContextVar("policy", default=_TRUST_MODULES)
_trusted_files: set[Path] = set()


@contextlib.contextmanager
def reading_record(code: Path | None = None, imported: Collection[str] = ()) -> Iterator[None]:
    """Inside the block, refuse references to code that is neither installed nor `code`.

    Args:
        code: a Python file, or a folder of a package or of files, that the user gives for the code
            of the record. A record's reference to a file means the file of that name.
        imported: top-level modules that the user has imported, if in another process.
    """
    path = None if code is None else code.resolve()
    token = _policy.set(_Policy(is_record=True, code=path, imported=frozenset(imported)))
    try:
        yield
    finally:
        _policy.reset(token)


@contextlib.contextmanager
def reading_own_run() -> Iterator[None]:
    """Inside the block, trust references to files: a run of this machine goes on."""
    token = _policy.set(_Policy(trusts_files=True))
    try:
        yield
    finally:
        _policy.reset(token)


def imported_modules() -> list[str]:
    """Return the top-level modules that this process has imported, which a record may name."""
    return [name for name in sys.modules if "." not in name]


def trust_files_in(value: Any) -> None:
    """Trust the files that a value from the command line refers to, for the rest of the process."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            trust_files_in(item)
    elif isinstance(value, str) and (match := _FILE.fullmatch(value)):
        _trusted_files.add(Path(match["path"]).resolve())


def is_reference(name: str) -> bool:
    """Return whether a name refers to a user's own code."""
    return ":" in name


def canonical(kind: str, name: str) -> str:
    """Return the name under which a configuration keeps what it refers to.

    Args:
        kind: the kind of thing, for messages.
        name: any name; a reference to a file becomes one with the file's absolute path.

    Raises:
        InputError: if it refers to a file that is not trusted, or to a module that a record may
            not name.
    """
    policy, match = _policy.get(), _FILE.fullmatch(name)
    if match is None:
        if policy.is_record and name.partition(":")[0].partition(".")[0] not in policy.imported:
            require_trusted_module(kind, name, policy.code)
        return name
    path = Path(match["path"]).resolve()
    if policy.is_record:
        path = _given_for(path, policy.code) or path
        if policy.code is None or not path.is_relative_to(policy.code):
            raise InputError(
                f"{kind} {name!r}: the record names a file of code; if you trust it, give it: "
                f"--code {path.name}"
            )
    elif path not in _trusted_files and not policy.trusts_files:
        raise InputError(
            f"{kind} {name!r}: a configuration cannot name a file, because reading it would "
            f"execute the file; name it on the command line, --set KEY={name}, or name an "
            f"importable module, package.module:{match['name']}"
        )
    _trusted_files.add(path)
    return f"{path}:{match['name']}"


def _given_for(path: Path, code: Path | None) -> Path | None:
    """Return the file of the user's `code` that stands for `path` of a record, if there is one."""
    if code is None:
        return None
    candidates = (code, code / path.name)
    return next((file for file in candidates if file.is_file() and file.name == path.name), None)


def resolve(kind: str, reference: str) -> Any:
    """Import what a reference names.

    A file is loaded as a module of its own, exactly from its path and once per process. For a
    module, the current folder is put on ``sys.path``, as ``python`` does.

    Args:
        kind: the kind of thing, for messages.
        reference: ``package.module:name``, or ``PATH/own.py:name`` of a trusted file.

    Raises:
        InputError: if it is not trusted, cannot be imported, or does not exist.
    """
    reference = canonical(kind, reference)
    source, _, name = reference.rpartition(":")
    match = _FILE.fullmatch(reference)
    if not match and not all(part.isidentifier() for part in (*source.split("."), name)):
        raise InputError(f"{kind} {reference!r}: expected package.module:function")
    try:
        module = _load_file(Path(source)) if match else _import_module(kind, source, reference)
    except InputError:
        raise
    except FileNotFoundError as error:
        if not match or Path(source).exists():  # raised by the code itself
            raise InputError(f"{kind} {reference!r} cannot be imported: {error}") from None
        raise InputError(f"{kind} {reference!r}: there is no file {source}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module does
        reason = first_line(error)
        raise InputError(f"{kind} {reference!r} cannot be imported: {reason}") from None
    if not hasattr(module, name):
        place = f"the file {source}" if match else f"the module {source}"
        raise InputError(f"{kind} {reference!r}: {place} has no {name!r}")
    return getattr(module, name)


def _import_module(kind: str, name: str, reference: str) -> ModuleType:
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        raise InputError(
            f"{kind} {reference!r}: expected a module with a {kind}, got one of Python's own"
        )
    code = _policy.get().code
    if code is not None and code.stem == top and top not in sys.modules:
        if code.is_file() and name == top:
            return _load_file(code, name)
        sys.path.insert(0, str(code.parent))
    if str(Path.cwd()) not in sys.path:
        # a command does not look into the folder in which it is called, python does
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _load_file(path: Path, name: str | None = None) -> ModuleType:
    """Load exactly this file, as a module whose name no other file can have."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = name or f"_fbp_file_{digest}_{re.sub(r'[^a-zA-Z0-9_]', '_', path.stem)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def require_trusted_module(kind: str, name: str, code: Path | None = None) -> None:
    """Check that a name in a record, which anybody may have written, means trusted code.

    Args:
        kind: the kind of thing, for messages.
        name: a name of the catalogue, which is always trusted, or ``package.module:name``.
        code: a file (or package) that the user gives for the module.

    Raises:
        InputError: if the module is neither installed, nor imported already, nor `code`.
    """
    top = name.partition(":")[0].partition(".")[0]
    if not is_reference(name) or top in sys.modules or (code is not None and code.stem == top):
        return
    if top in sys.stdlib_module_names:
        raise InputError(
            f"{kind} {name!r}: expected a module with a {kind}, got one of Python's own"
        )
    current = Path.cwd().resolve()
    installed = [entry for entry in sys.path if entry and Path(entry).resolve() != current]
    others = [
        finder
        for finder in sys.meta_path
        if finder is not PathFinder and hasattr(finder, "find_spec")
    ]
    if not PathFinder.find_spec(top, installed) and not any(
        finder.find_spec(top, None) for finder in others
    ):
        raise InputError(
            f"{kind} {name!r}: the record names code that is not installed; if you trust it, "
            f"install or import it, or give its file: --code {top}.py"
        )


def import_name(reference: str) -> Any:
    """Import what a reference of the library itself names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
