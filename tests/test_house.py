"""The code's own rules: the order of imports, one owner of paths, names, sizes."""

import ast
import functools
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fbp").rglob("*.py"))

# everyday words that say nothing of a thing; a name says what the thing is
FILLERS = {
    "found", "kept", "there", "here", "told", "met", "given", "drawn", "at", "before", "first",
    "wanted", "asked", "said", "begun", "odd", "meant", "what", "that", "such", "one", "gone",
    "left_over",
}  # fmt: skip

# the core, in the order of its imports
CORE = [
    "_neutral", "_secrets", "errors", "_interruptible", "_jaxlib", "_optional", "_arguments",
    "layer", "_observation", "_serialization", "_kernels", "initializers",
    "layers", "combinators", "losses", "_backprop", "_gradcheck", "_summary", "_diagram", "metrics",
    "schedules", "optimizers", "augmentation", "diagnostics", "training", "generation", "blocks",
    "models",
]  # fmt: skip

MAX_LINES, MAX_POSITIONAL = 60, 7


@functools.cache
def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


def assigned_names(tree):
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno


def test_no_name_is_a_filler():
    fillers = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in trees()
        for name, line in assigned_names(tree)
        if name.strip("_") in FILLERS
    ]
    assert not fillers, "\n".join(fillers)


def test_functions_are_short_and_their_arguments_few():
    too_long = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                count = len(positional) - (positional[:1] in (["self"], ["cls"]))
                if lines > MAX_LINES or count > MAX_POSITIONAL:
                    name = f"{path.relative_to(ROOT)}: {node.name}"
                    too_long.append(f"{name}: {lines} lines, {count} positional arguments")
    assert not too_long, "\n".join(too_long)


def imported_modules(tree):
    """Yield the modules that a file imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def test_each_part_of_the_core_imports_only_earlier_ones():
    wrong = []
    for path, tree in trees():
        part = path.relative_to(ROOT / "fbp").parts[0].removesuffix(".py")
        if part not in CORE:
            continue
        allowed = set(CORE[: CORE.index(part) + 1])
        for module in imported_modules(tree):
            names = module.split(".")
            if names[0] != "fbp" or len(names) < 2 or names[1] in allowed:
                continue
            if names[1] in CORE or names[1] in ("datasets", "experiment", "cli"):
                wrong.append(f"{part} imports {module}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_every_part_of_the_core_has_its_place():
    parts = {path.relative_to(ROOT / "fbp").parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__", "__main__", "datasets", "experiment", "cli"} == set(CORE)


def test_the_core_imports_jax_and_numpy_only():
    standard = {"__future__", *__import__("sys").stdlib_module_names}
    for path, tree in trees():
        if path.relative_to(ROOT / "fbp").parts[0].removesuffix(".py") in CORE:
            outside = {module.split(".")[0] for module in imported_modules(tree)}
            assert outside - standard <= {"fbp", "jax", "jaxlib", "numpy"}, path


@pytest.mark.parametrize(
    "text",
    ["config.toml", "results.npz", "params.npz", "model.json", "shipper.log", "environment.json",
     "diagram.json", "summary.txt", "steps.csv", "metrics.csv", "checkpoints.json", "git.diff"],
)  # fmt: skip
def test_names_of_files_have_one_owner(text):
    owners = set()
    for path, tree in trees():
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            text_constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if text_constant and id(node) not in docstrings and node.value.split("/")[-1] == text:
                owners.add(path.relative_to(ROOT / "fbp/experiment").as_posix())
    assert owners <= {"rundir/layout.py"}


def test_tags_have_one_owner():
    constants = {
        node.value.value
        for node in ast.walk(ast.parse((ROOT / "fbp/experiment/rundir/tags.py").read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert {"fbp.folder", "mlflow.parentRunId"} <= constants
    elsewhere = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path, tree in trees()
        if path.name != "tags.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in constants
    ]
    assert not elsewhere, "\n".join(elsewhere)


def test_no_module_hides_behind_a_function_of_its_name():
    import fbp
    import fbp.experiment

    for package in (fbp, fbp.layers, fbp.combinators, fbp.optimizers, fbp.experiment):
        folder = Path(package.__file__).parent
        for path in folder.glob("[!_]*.py"):
            value = getattr(package, path.stem, None)
            assert value is None or isinstance(value, type(fbp)), f"{package.__name__}.{path.stem}"


def test_the_version_with_wrong_sums_is_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(d.startswith("jax>") and "!=0.10.2" in d for d in project["dependencies"])
