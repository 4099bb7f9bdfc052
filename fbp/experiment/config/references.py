"""References to a user's own code, ``package.module:name`` or ``PATH/own.py:name``.

To resolve a reference executes code, so who wrote it matters. A configuration of the user's own may
name modules that Python can import. A file may be named by the person who runs the command only, on
the command line (:func:`trust_files_in`). A record, which anybody may have written, may name what
is in fbp's own catalogue. Any other reference is refused unless the user trusts that very one, or
gives the file that stands for it (:func:`reading_record`); whether it is installed plays no part.
"""

import contextlib
import contextvars
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fbp.errors import InputError, first_line

_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")
_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_MAX_FILES = 2000  # of a user's own package, of which digests are taken


class Trust(NamedTuple):
    """Which references of a record are trusted.

    Attributes:
        references: exactly these; the file that stands for each, None if it is what it names.
        code: files, or folders of a package or of files, that the user gives for a record's code.
    """

    references: Mapping[str, Path | None] = {}
    code: tuple[Path, ...] = ()

    def file_for(self, reference: str) -> Path | None:
        """Return the file (or folder of a package) that stands for a reference; None if none."""
        match = _FILE.fullmatch(reference)
        file = Path(match["path"]).name if match else ""
        top = "" if match else reference.partition(":")[0].partition(".")[0]
        for path in self.code:
            if path.is_file() and path.name == (file or f"{top}.py"):
                return path
            if not file and path.name == top and (path / "__init__.py").is_file():
                return path
            if path.is_dir() and (path / (file or f"{top}.py")).is_file():
                return path / (file or f"{top}.py")
        return None

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON's types."""
        references = {name: path and str(path) for name, path in self.references.items()}
        return {"references": references, "code": [str(path) for path in self.code]}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Trust":
        """Return what :meth:`to_json` returned."""
        references = {name: path and Path(path) for name, path in entries["references"].items()}
        return cls(references, tuple(map(Path, entries["code"])))

    def and_also(self, other: "Trust") -> "Trust":
        """Return the trust in all that this or the other trusts."""
        return Trust({**self.references, **other.references}, (*self.code, *other.code))


NO_TRUST = Trust()


def trust(references: Collection[str] = (), code: Collection[str | Path] = ()) -> Trust:
    """Return the trust in what a user names.

    Args:
        references: ``package.module:name`` or ``PATH/own.py:name``, exactly as a record has them.
        code: Python files, or folders of a package or of files.

    Raises:
        InputError: if a reference has another form, or if there is no such file.
    """
    for reference in references:
        if not isinstance(reference, str) or not (
            _MODULE.fullmatch(reference) or _FILE.fullmatch(reference)
        ):
            raise InputError(
                f"trust: expected a reference, package.module:name or PATH/own.py:name, got "
                f"{reference!r}"
            )
    paths = [Path(path).resolve() for path in code]
    for given, path in zip(code, paths, strict=True):
        if not path.is_dir() and not (path.is_file() and path.suffix == ".py"):
            raise InputError(f"code: expected a Python file or a folder, got {str(given)!r}")
    return Trust(dict.fromkeys(references), tuple(paths))


class _Policy(NamedTuple):
    """Which references are trusted.

    Attributes:
        is_record: the configuration comes from a record; only what `trust` says is trusted.
        trust: see :class:`Trust`.
    """

    is_record: bool = False
    trust: Trust = NO_TRUST


_USERS_OWN = _Policy()
_policy = contextvars.ContextVar("policy", default=_USERS_OWN)
_trusted_files: set[Path] = set()
_resolved: dict[str, tuple[Path | None, ModuleType]] = {}


@contextlib.contextmanager
def reading_record(trusted: Trust = NO_TRUST) -> Iterator[None]:
    """Inside the block, refuse all references but those that are trusted."""
    token = _policy.set(_Policy(is_record=True, trust=trusted))
    try:
        yield
    finally:
        _policy.reset(token)


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
    """Return the name under which a configuration keeps what it refers to; import nothing.

    Args:
        kind: the kind of thing, for messages.
        name: any name. A user's own reference to a file becomes one with the file's absolute path;
            a record's names stay as they are.

    Raises:
        InputError: if it refers to code that is not trusted.
    """
    policy, match = _policy.get(), _FILE.fullmatch(name)
    if policy.is_record:
        if is_reference(name):
            _require_trusted(kind, name, policy.trust)
        return name
    if match is None:
        return name
    path = Path(match["path"]).resolve()
    if path not in _trusted_files:
        raise InputError(
            f"{kind} {name!r}: a configuration cannot name a file, because reading it would "
            f"execute the file; name it on the command line, --set KEY={name}, or name an "
            f"importable module, package.module:{match['name']}"
        )
    return f"{path}:{match['name']}"


def _require_trusted(kind: str, name: str, trusted: Trust) -> None:
    if name in trusted.references or trusted.file_for(name):
        return
    match = _FILE.fullmatch(name)
    file = Path(match["path"]).name if match else f"{name.partition(':')[0].partition('.')[0]}.py"
    raise InputError(
        f"{kind} {name!r}: the record names code that is not fbp's own, which would be executed; "
        f"if you trust it, name it: --trust {name}, or give its file: --code {file}"
    )


def resolve(kind: str, reference: str) -> Any:
    """Import what a reference names.

    A file is loaded as a module of its own, exactly from its path and once per process. For a
    module, the current folder is searched after everything that is installed.

    Args:
        kind: the kind of thing, for messages.
        reference: ``package.module:name``, or ``PATH/own.py:name`` of a trusted file.

    Raises:
        InputError: if it is not trusted, cannot be imported, or does not exist.
    """
    reference = canonical(kind, reference)
    policy = _policy.get()
    given = _file_of(reference, policy.trust) if policy.is_record else None
    source, _, name = reference.rpartition(":")
    match = _FILE.fullmatch(reference)
    if not match and not _MODULE.fullmatch(reference):
        raise InputError(f"{kind} {reference!r}: expected package.module:function")
    path = given or (Path(source) if match else None)
    try:
        module = _load(path, source) if path else _import_module(kind, source, reference)
    except InputError:
        raise
    except FileNotFoundError as error:
        if path is None or path.exists():  # raised by the code itself
            raise InputError(f"{kind} {reference!r} cannot be imported: {error}") from None
        raise InputError(f"{kind} {reference!r}: there is no file {path}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module does
        reason = first_line(error)
        raise InputError(f"{kind} {reference!r} cannot be imported: {reason}") from None
    if not hasattr(module, name):
        place = f"the file {path}" if path else f"the module {source}"
        raise InputError(f"{kind} {reference!r}: {place} has no {name!r}")
    _resolved[reference] = given, module
    return getattr(module, name)


def _file_of(reference: str, trusted: Trust) -> Path | None:
    """Return the file that stands for a record's reference; None if it is what it names."""
    return trusted.file_for(reference) or trusted.references.get(reference)


def named_in(text: str) -> Trust:
    """Return the trust in those references of a configuration's text that were resolved here."""
    return Trust({name: path for name, (path, _) in _resolved.items() if name in text})


def own_code(text: str) -> dict[str, str]:
    """Return SHA-256 of each file of a user's own code that a configuration's text refers to.

    These are the modules that it names, and all files of their packages; beside a module without a
    package, the modules in its folder that were imported.
    """
    files: set[Path] = set()
    for name, (_, module) in list(_resolved.items()):
        origin = getattr(module, "__file__", None)
        if name in text and origin:
            files |= _files_beside(Path(origin).resolve(), module.__name__)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def _files_beside(path: Path, module: str) -> set[Path]:
    if "." in module or path.name == "__init__.py":
        folder = path.parents[module.count(".") - (path.name != "__init__.py")]
        return set(sorted(folder.rglob("*.py"))[:_MAX_FILES])
    origins = [getattr(other, "__file__", None) for other in list(sys.modules.values())]
    imported = {Path(origin).resolve() for origin in origins if isinstance(origin, str)}
    is_installed = "site-packages" in path.parts
    beside = set() if is_installed else {p for p in imported if path.parent in p.parents}
    return {path, *(p for p in beside if p.suffix == ".py" and "site-packages" not in p.parts)}


def _import_module(kind: str, name: str, reference: str) -> ModuleType:
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(
            f"{kind} {reference!r}: expected a module with a {kind}, got one of Python's own"
        )
    _search_last(Path.cwd())
    return importlib.import_module(name)


def _search_last(folder: Path) -> None:
    """Let Python look for modules in a folder, after everywhere else."""
    entries = [entry for entry in sys.path if Path(entry or ".").resolve() != folder.resolve()]
    sys.path[:] = [*entries, str(folder)]


def _load(path: Path, name: str) -> ModuleType:
    """Load a file, or the module `name` of the package in a folder."""
    if not path.is_dir():
        return _load_file(path)
    top = path.name
    if top not in sys.modules:
        _exec(top, path / "__init__.py", [str(path)])
    origin = getattr(sys.modules[top], "__file__", None)
    if origin is None or Path(origin).resolve().parent != path:
        raise InputError(
            f"code {str(path)!r}: a package {top!r} is imported already, from {origin}; give the "
            "folder another name"
        )
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    """Load exactly this file, as a module whose name no other file can have.

    What it imports from its own folder is searched after everything that is installed.
    """
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = f"_fbp_file_{digest}_{re.sub(r'[^a-zA-Z0-9_]', '_', path.stem)}"
    if name not in sys.modules:
        path.stat()  # FileNotFoundError
        _search_last(path.parent)
        _exec(name, path)
    return sys.modules[name]


def _exec(name: str, path: Path, package: list[str] | None = None) -> None:
    """Execute a file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def import_name(reference: str) -> Any:
    """Import what a reference of the library itself names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
