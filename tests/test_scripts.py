"""Scripts that no test runs: what they import from the package is there."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = [*sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "docs" / "tables.py"]


def missing(source: str) -> list[str]:
    """Names imported from midefense that its modules do not have."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in found if (node.module or "").split(".")[0] == "midefense"]
    asked = [(importlib.import_module(node.module), alias.name) for node in ours for alias in node.names]
    return [f"{module.__name__}.{name}" for module, name in asked if not available(module, name)]


def available(module, name: str) -> bool:
    if hasattr(module, name):
        return True
    return hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}") is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: Path(path).stem)
def test_a_script_finds_what_it_imports(script):
    assert missing(script.read_text()) == []


def test_a_name_that_is_gone_is_seen():
    assert missing("from midefense.plan.compose import compose, configured") == ["midefense.plan.compose.configured"]
