"""Methods see no suspect: they import the interface and building blocks, never the zoo, the evaluator or the store."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"api", "cost", "errors", "gans", "nets", "ops", "records", "replay", "transforms"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "fingerbench":
            yield from (f"fingerbench.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_a_method_imports_only_building_blocks(path):
    for name in imported(path):
        room = name.split(".")
        assert room[0] != "methods", f"{path.name} imports another method: {name}"
        assert room[0] != "fingerbench" or room[1] in ALLOWED, f"{path.name} imports {name}"
