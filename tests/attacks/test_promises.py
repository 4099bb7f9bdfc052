"""The promises in docs/promises.md and the attacks in this folder list each other."""

import ast
import re
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parent
DOCUMENT = ATTACKS.parent.parent / "docs" / "promises.md"

Listing = set[tuple[str, str]]  # (promise, "test_file.py::test_name")


def promised(text: str) -> Listing:
    """Return the promises of a document, each with its tests: items "- **name**: ... `test`"."""
    listing = set()
    for item in re.split(r"\n(?=- |#)", text):
        if match := re.match(r"- \*\*([a-z0-9-]+)\*\*: ", item):
            tests = re.findall(r"`(test_\w+\.py::test_\w+)`", item)
            listing |= {(match[1], test) for test in tests or ["no test"]}
    return listing


def attacked(folder: Path) -> Listing:
    """Return the tests of `folder`, each with the promises that its marks name."""
    listing = set()
    for path in sorted(folder.glob("test_*.py")):
        if path == Path(__file__):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = re.findall(
                    r"mark\.promise\('([^']+)'\)", "\n".join(map(ast.unparse, node.decorator_list))
                )
                test = f"{path.name}::{node.name}"
                listing |= {(mark, test) for mark in marks or ["no promise"]}
    return listing


def test_promises_and_attacks_list_each_other():
    document, tests = promised(DOCUMENT.read_text()), attacked(ATTACKS)
    assert document - tests == set(), "promised, but not attacked"
    assert tests - document == set(), "attacked, but not promised"


def test_promise_without_an_attack_is_found():
    assert promised("- **a-name**: A sentence.\n- **b**: X. `test_x.py::test_y`\n") == {
        ("a-name", "no test"),
        ("b", "test_x.py::test_y"),
    }


@pytest.mark.parametrize("promises", [["a"], ["a", "b"], []])
def test_attack_without_a_promise_is_found(tmp_path, promises):
    marks = "".join(f'@pytest.mark.promise("{promise}")\n' for promise in promises)
    (tmp_path / "test_x.py").write_text(f"{marks}def test_y():\n    pass\n")
    expected = promises or ["no promise"]
    assert attacked(tmp_path) == {(promise, "test_x.py::test_y") for promise in expected}
