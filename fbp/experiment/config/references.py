"""References to a user's own code, ``package.module:name`` or ``PATH/own.py:name``.

To resolve a reference executes code, so who wrote it matters. A user's own configuration may name
modules that Python can import. A file may be named by the person who runs the command only, on the
command line (:func:`trust_files_in`).

A record, which anybody may have written, is read inside :func:`reading_record`. It may name what is
in fbp's own catalogue, and else only what its reader trusts: exact references, and names of files
that the reader gives (:class:`.trust.Trust`). What is installed or imported does not matter.
"""

import ast
import contextlib
import contextvars
import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import sys
import types
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from fbp.errors import InputError, UntrustedCode, first_line
from fbp.experiment.config.trust import (
    FILE_REFERENCE,
    NOTHING,
    Trust,
    file_for,
    is_module_reference,
    package_parts,
)

_trust = contextvars.ContextVar[Trust | None]("trust", default=None)  # None: no record is read
_trusted_files: set[Path] = set()


@contextlib.contextmanager
def reading_record(trust: Trust = NOTHING) -> Iterator[None]:
    """Inside the block, refuse references that are neither in fbp's catalogue nor trusted.

    Args:
        trust: what the reader of the record trusts.
    """
    token = _trust.set(trust)
    try:
        yield
    finally:
        _trust.reset(token)


def current_trust() -> Trust:
    """Return what is trusted while a record is read; nothing if none is read."""
    return _trust.get() or NOTHING


def trust_files_in(value: Any) -> None:
    """Trust the files that a value from the command line refers to, for the rest of the process."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            trust_files_in(item)
    elif isinstance(value, str) and (match := FILE_REFERENCE.fullmatch(value)):
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
        InputError: if it refers to a file that is not trusted, or to code that a record may not
            name.
    """
    trust, match = _trust.get(), FILE_REFERENCE.fullmatch(name)
    if trust is not None:
        return _canonical_in_record(kind, name, trust)
    if match is None:
        return name
    path = Path(match["path"]).resolve()
    if path not in _trusted_files:
        raise InputError(
            f"{kind} {name!a}: a configuration cannot name a file, because reading it would "
            f"execute the file; name it on the command line, --set KEY={ascii(name)[1:-1]}, or "
            f"name an importable module, package.module:{match['name']}"
        )
    return f"{path}:{match['name']}"


def _canonical_in_record(kind: str, name: str, trust: Trust) -> str:
    if not is_reference(name) or _is_exported(kind, name):
        return name
    match = FILE_REFERENCE.fullmatch(name)
    if match is None and not is_module_reference(name):
        raise InputError(f"{kind} {name!a}: expected package.module:function")
    path = next(filter(None, (file_for(source, name) for source in trust.code)), None)
    if path is not None:
        _trusted_files.add(path)  # a model that was loaded goes on to name it
        return f"{path}:{name.rpartition(':')[2]}"
    exact = name
    if match is not None and Path(match["path"]).is_absolute():  # never in the current folder
        exact = f"{Path(match['path']).resolve()}:{match['name']}"
    if exact in trust.references:
        if match is not None:
            _trusted_files.add(Path(match["path"]).resolve())
        return exact
    raise UntrustedCode(f"{kind} {name!a}: the record names code outside of fbp; {_hint(name)}")


def _hint(name: str) -> str:
    """Return how to trust a reference, for a message."""
    source = name.rpartition(":")[0]
    if not (name.isascii() and name.isprintable()):
        return "not all of its letters are plain ones, so compare it with what you expect"
    if FILE_REFERENCE.fullmatch(name):
        file = shlex.quote(Path(source).name)
        return f"if you trust it, give your copy of the file: --code {file}, code= in Python"
    if source.partition(".")[0] in sys.stdlib_module_names:
        return "it is one of Python's own functions, which fbp never runs"
    return (
        f"if you trust it, say so: --trust {name}, trust= in Python; or give its file with --code"
    )


def _is_exported(kind: str, name: str) -> bool:
    """Return whether a reference spells out a name of the catalogue, such as fbp.models:mlp."""
    from fbp.experiment.config.catalogue import EXPORTED_REFERENCES

    return name in EXPORTED_REFERENCES.get(kind, ())


def resolve(kind: str, reference: str) -> Any:
    """Import what a reference names.

    A file is loaded exactly from its path, once per process, as a module of its own, or as a module
    of the package that it belongs to. For a module of a user's own configuration, the current
    folder is searched last, so that it hides no installed package.

    Args:
        kind: the kind of thing, for messages.
        reference: ``package.module:name``, or ``PATH/own.py:name`` of a trusted file.

    Raises:
        InputError: if it is not trusted, cannot be imported, or does not exist.
    """
    reference = canonical(kind, reference)
    source, _, name = reference.rpartition(":")
    is_file = FILE_REFERENCE.fullmatch(reference) is not None
    if not is_file and not is_module_reference(reference):
        raise InputError(f"{kind} {reference!a}: expected package.module:function")
    shown = ascii(reference) if _trust.get() is not None else repr(reference)
    with _named_errors(f"{kind} {shown}", source if is_file else None):
        module = _load_file(Path(source)) if is_file else _import_module(kind, source, reference)
    is_given = is_file and _trust.get() is not None and reference not in current_trust().references
    exists = name in vars(module) if is_given else hasattr(module, name)
    if not exists or (is_given and name.startswith("__")):
        place = f"the file {source}" if is_file else f"the module {source}"
        raise InputError(f"{kind} {shown}: {place} has no {name!r}")
    value = getattr(module, name)
    if is_given and not _is_defined_in(value, module):
        raise InputError(
            f"{kind} {shown}: {name!r} is not defined in that file, but imported into it; if you "
            f"trust it, say so: --trust {shlex.quote(reference)}"
        )
    return value


@contextlib.contextmanager
def _named_errors(subject: str, file: str | None) -> Iterator[None]:
    """Turn whatever a user's module raises when it is imported into one line."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        if file is None or Path(file).exists():  # raised by the code itself
            raise InputError(f"{subject} cannot be imported: {error}") from None
        raise InputError(f"{subject}: there is no file {file}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{subject} cannot be imported: {first_line(error)}") from None


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    """Return whether a file's name means code of its own, not something imported from elsewhere.

    Code of the files beside it counts as its own. A function and a class say where they were
    defined; any other object is taken as imported if another module has it, too.
    """
    if not callable(value):
        return True
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        homes = [sys.modules.get(str(value.__module__))]
    else:
        homes = [
            other
            for other in map(sys.modules.get, list(sys.modules))
            if isinstance(other, ModuleType) and any(x is value for x in vars(other).values())
        ]
    folder = Path(str(module.__file__)).parent
    return all(home is module or _lies_below(home, folder) for home in homes)


def _lies_below(module: ModuleType | None, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or _is_installed(Path(file)):
        return False
    return Path(file).resolve().is_relative_to(folder)


def _import_module(kind: str, name: str, reference: str) -> ModuleType:
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(
            f"{kind} {reference!a}: expected a module with a {kind}, got one of Python's own"
        )
    trust = _trust.get()
    folders = _current_folder() if trust is None else trust.folders
    with _searched_last(folders):
        return importlib.import_module(name)


def _chosen_folders() -> list[Path]:
    """Return the absolute folders that the user has put into PYTHONPATH."""
    entries = map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [entry for entry in entries if entry.is_absolute()]


def _current_folder() -> tuple[Path, ...]:
    try:
        return (Path.cwd(),)
    except OSError:  # it was removed
        return ()


@contextlib.contextmanager
def _searched_last(folders: Iterable[Path]) -> Iterator[None]:
    """Inside the block, import from `folders` last, and from the current folder no earlier.

    Python puts the current folder first: ``./pip.py`` would be taken for the package pip. The
    folders stay on the path afterwards, because code may import more when it is called. If the user
    has put the current folder into PYTHONPATH, it is one of them.
    """
    current = _current_folder()
    moved = [
        (index, entry)
        for index, entry in enumerate(sys.path)
        if not entry or Path(entry).resolve() in current
    ]
    for _, entry in moved:
        sys.path.remove(entry)
    if moved and not set(current).isdisjoint(_chosen_folders()):
        folders = (*folders, *current)
    appended = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path.extend(appended)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if moved:
            for folder in current:
                if str(folder) in appended and str(folder) in sys.path:
                    sys.path.remove(str(folder))
        for index, entry in moved:
            sys.path.insert(index, entry)


def search_last(folders: Iterable[Path]) -> None:
    """Append folders to where this process imports from."""
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)


def _load_file(path: Path) -> ModuleType:
    """Load exactly this file: in its package if it has one, or under a name that no other has."""
    root, dotted = _module_name(path)
    if "." in dotted or path.name == "__init__.py":
        return _import_in_package(path, root, dotted)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = f"_fbp_file_{digest}_{re.sub(r'[^a-zA-Z0-9_]', '_', path.stem)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _require_own_siblings(path)
        with _searched_last([path.parent]):  # it may import the files beside it
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _require_own_siblings(path: Path) -> None:
    """Refuse a file that imports one beside it if a module of that name came from elsewhere.

    Python has one module of a name in a process: the file would get another file's functions.
    """
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):  # importing it says so
        return
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    for name in {name.partition(".")[0] for name in names}:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        siblings = (path.parent / f"{name}.py", path.parent / name / "__init__.py")
        is_beside = any(sibling.is_file() for sibling in siblings)
        if not loaded or not is_beside or _is_installed(Path(loaded)):
            continue
        if Path(loaded).resolve() not in siblings:
            raise InputError(
                f"{path}: it imports {name!r} from beside it, but this process has imported "
                f"{loaded} under that name; use another process, or rename one of the files"
            )


def import_folder(path: Path) -> Path:
    """Return the folder from which a file is imported: its own, or that above its package."""
    return _module_name(path)[0]


def _module_name(path: Path) -> tuple[Path, str]:
    """Return the folder from which a file is imported, and its dotted name there."""
    parts = package_parts(path)
    above = len(parts) if path.name == "__init__.py" else len(parts) - 1
    return path.parents[above], ".".join(parts)


def _import_in_package(path: Path, root: Path, dotted: str) -> ModuleType:
    """Import a file as a module of its package; refuse if another package has that name."""
    top = dotted.partition(".")[0]
    expected = root / top / "__init__.py"
    with _searched_last([root]):
        loaded = sys.modules.get(top)
        spec = None if loaded else PathFinder.find_spec(top)
        origin = getattr(loaded, "__file__", None) if loaded else spec.origin if spec else None
        if origin is None or Path(origin).resolve() != expected.resolve():
            raise InputError(
                f"{path}: its package {top!r} is hidden by another one of that name "
                f"({origin or 'built into Python'}); rename the package, or uninstall the other"
            )
        module = importlib.import_module(dotted)
    if Path(str(module.__file__)).resolve() != path:
        raise InputError(f"{path}: importing {dotted} gave {module.__file__}")
    return module


def _is_installed(path: Path) -> bool:
    """Return whether a file belongs to Python or to an installed package."""
    import sysconfig

    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(folder).resolve() in path.resolve().parents for folder in folders if folder)


def _loaded_modules(names: Iterable[str]) -> Iterator[ModuleType]:
    """Yield the modules of references that are loaded."""
    for name in names:
        source = name.rpartition(":")[0]
        if FILE_REFERENCE.fullmatch(name):
            path = Path(source).resolve()
            files = ((module, getattr(module, "__file__", None)) for module in _modules())
            yield from (module for module, file in files if file and Path(file) == path)
        elif source in sys.modules:
            yield sys.modules[source]


def _modules() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]


def code_folders(names: Iterable[str]) -> tuple[Path, ...]:
    """Return the folders from which the modules of references were imported, if not installed."""
    folders = []
    for module in _loaded_modules(names):
        file = getattr(module, "__file__", None)
        if file and not _is_installed(Path(file)):
            folders.append(_module_name(Path(file).resolve())[0])
    return tuple(dict.fromkeys(folders))


def code_files(names: Iterable[str]) -> dict[str, Path]:
    """Return the files of a user's own code that references have loaded, by a short name.

    These are the files that the references name, and all that were imported from beside them. Of an
    installed package, it is the named module's file alone: the package's version stands for it.
    """
    files: dict[str, Path] = {}
    for module in list(_loaded_modules(names)):
        if not getattr(module, "__file__", None):
            continue
        path = Path(str(module.__file__)).resolve()
        root = _module_name(path)[0]
        beside = [] if _is_installed(path) else _imported_from(root)
        for file in (path, *beside):
            short = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
            if files.setdefault(short, file) != file:
                files[file.as_posix()] = file
    return dict(sorted(files.items()))


def named_files(names: Iterable[str]) -> set[Path]:
    """Return the files in which the references themselves are, if they are loaded."""
    files = (getattr(module, "__file__", None) for module in _loaded_modules(names))
    return {Path(file).resolve() for file in files if file}


def _imported_from(root: Path) -> list[Path]:
    """Return the files below a folder that are loaded, without fbp's own and installed ones."""
    fbp_folder = Path(__file__).resolve().parents[2]
    paths = []
    for module in _modules():
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        is_below = root in path.parents and fbp_folder not in path.parents
        if is_below and not _is_installed(path) and module.__name__ != "__main__":
            paths.append(path)
    return sorted(set(paths))


def import_name(reference: str) -> Any:
    """Import what a reference of the library itself names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
