"""A level imports only itself and lower ones; the commands that only check or read import nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lm_scale"
LEVELS = {
    "arguments": 0,
    "records": 0,
    "strategy": 1,
    "costs": 1,
    "experiments": 1,
    "data": 2,
    "models": 2,
    "training": 2,
    "engines": 3,
    "pretrain": 4,
    "generate": 4,
    "export": 4,
    "lint": 5,
    "plan": 5,
    "compare": 5,
    "sweep": 5,
    "report": 5,
}
HEAVY = {"torch", "deepspeed", "transformers"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module named in an import, wherever it stands in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = LEVELS[part(path)]
    for name in imports(path):
        words = name.split(".")
        if words[0] == "lm_scale" and len(words) > 1 and words[1] in LEVELS:
            assert LEVELS[words[1]] <= own, f"{name} is above level {own}"
        if own in (0, 1, 5):
            assert words[0] not in HEAVY, name
        if words[0] == "deepspeed":
            assert part(path) == "engines", "deepspeed is imported by engines alone"


@pytest.mark.parametrize("path", [p for p in modules() if LEVELS[part(p)] == 0], ids=lambda path: path.name)
def test_level_0_is_standard_library_only(path: Path) -> None:
    """But for the YAML reader, which a file of arguments loads when it is given."""
    outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"lm_scale", "__future__"}
    assert outside <= {"yaml"}


def test_reading_runs_loads_no_engine() -> None:
    code = "import sys, lm_scale.report; print(sorted({'torch', 'deepspeed', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_at_the_top_is_a_command_or_what_commands_stand_on() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("__init__", "arguments", "records"):
            assert 'if __name__ == "__main__":' in path.read_text()
