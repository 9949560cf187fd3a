"""Which configuration attributes nothing in the installed DeepSpeed reads, by name, over all its sources.

An attribute has a reader where its name is loaded (`x.name`), or stands as a string (`getattr`, the C++ side); an
accessor of one line in engine.py (`def zero_allgather_partitions(self): return ...`) is one only where it is itself
called. The error is on the safe side: a name used for something else counts as a reader.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import deepspeed

ROOT = Path(deepspeed.__file__).parent
ENGINE = "runtime/engine.py"


@cache
def _sources() -> tuple[dict[str, set[tuple[str, str]]], set[str]]:
    """Where each attribute name is loaded, as (file, accessor that only returns it or ""), and all strings of code."""
    loads: dict[str, set[tuple[str, str]]] = defaultdict(set)
    strings = set()
    for path in sorted(ROOT.rglob("*.py")):
        file = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        accessor = {}
        if file == ENGINE:
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            for function in functions:
                body = [part for part in function.body if not _is_docstring(part)]
                if len(body) == 1 and isinstance(body[0], ast.Return):
                    accessor.update({id(node): function.name for node in ast.walk(body[0])})
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                loads[node.attr].add((file, accessor.get(id(node), "")))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not file.endswith("constants.py"):
                strings.add(node.value)
    for path in (ROOT / "ops" / "csrc").rglob("*.cpp"):
        strings.update(re.findall(r'"(\w+)"', path.read_text(encoding="utf-8", errors="replace")))
    return loads, strings


def unread(attribute: str, defined_in: str) -> bool:
    """Whether nothing reads `attribute`, which `defined_in` (a file below the package) sets."""
    loads, strings = _sources()
    if attribute in strings:
        return False
    for file, accessor in loads[attribute]:
        if accessor and accessor != attribute and loads[accessor]:
            return False
        if not accessor and (file != defined_in or not file.endswith("runtime/config.py")):
            return False
    return True


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
