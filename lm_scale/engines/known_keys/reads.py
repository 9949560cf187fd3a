"""Which keys DeepSpeed's sources read from plain dicts: an abstract walk over its syntax trees.

A value is followed as the set of places in the JSON that it may hold (`Places`), from `DeepSpeedConfig(config)` through
the functions that it is handed to. Every `place.get(key, default)`, `place[key]`, `key in place` with a constant key is
a read; a key that is no constant reads `*`. A block that ends in a pydantic model, `Model(**place)`, is the model's.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import deepspeed
import pydantic

from lm_scale.engines.known_keys.places import UNKNOWN, Instance, Place, Places, holds, merged

ROOT = Path(deepspeed.__file__).parent
DEPTH = 12  # of calls; DeepSpeed's own readers nest to 6


@dataclass
class Read:
    """A key read from a plain dict: its default (`UNKNOWN` without one) and `file:line` of the reader."""

    default: Any = UNKNOWN
    at: str = ""


@cache
def _tree(function: Any) -> tuple[ast.FunctionDef, ModuleType, str, int]:
    """A function's syntax tree, module, file below the package and line before its first."""
    lines, first = inspect.getsourcelines(function)
    node = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(node, ast.FunctionDef)
    module = inspect.getmodule(function)
    assert module is not None
    return node, module, str(Path(inspect.getfile(function)).relative_to(ROOT)), first - 1


class Walk:
    """The `reads` and `models` (pydantic classes by place) of all that was entered.

    `attributes`: what the attributes of `engine._config` hold.
    """

    def __init__(self) -> None:
        self.reads: dict[Place, Read] = {}
        self.models: dict[Place, type[pydantic.BaseModel]] = {}
        self.attributes: dict[str, Any] = {}

    def enter(self, function: Any, bindings: dict[str, Any], depth: int = 0, caller: str = "") -> Any:
        """Walk a function whose parameters hold `bindings`; what it returns, as far as it is known."""
        node, module, file, line = _tree(function)
        frame = _Frame(self, module, dict(bindings), depth, file, line, caller)
        for statement in node.body:
            frame.visit(statement)
        return frame.returned

    def read(self, place: Place, default: Any, at: str) -> None:
        found = self.reads.setdefault(place, Read(at=at))
        if found.default is UNKNOWN:
            found.default = default


class _Frame(ast.NodeVisitor):
    """One function's walk: every branch is taken, and a name that holds a place keeps it beside later ones."""

    def __init__(self, walk: Walk, module: ModuleType, names: dict[str, Any], depth: int, *where: Any) -> None:
        self.walk, self.module, self.names, self.depth = walk, module, names, depth
        self.file, self.line, self.caller = where
        self.imports: dict[str, tuple[str, str]] = {}
        self.returned: Any = UNKNOWN

    def at(self, node: Any) -> str:
        """The reading line; for the three-line helpers of config_utils.py, the line that calls them."""
        return self.caller if self.file.endswith("config_utils.py") else f"{self.file}:{self.line + node.lineno}"

    # Statements

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and not node.level and node.module.startswith("deepspeed."):
            self.imports.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.returned = merged(self.returned, self.value(node.value))

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.bind(target, value)

    def visit_For(self, node: ast.For) -> None:
        if _copies_items(node) and isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Attribute):
            target = node.body[0].targets[0].value  # type: ignore[attr-defined]
            self.names[target.id] = self.value(node.iter.func.value)
            return
        items = self.value(node.iter)
        if isinstance(items, Places):
            self.bind(node.target, Places(frozenset((*place, "*") for place in items.places)))
            items = [None]
        elif not isinstance(items, dict | list | tuple | set):
            items = [None]
            self.bind(node.target, UNKNOWN)
        for item in items:
            if item is not None:
                self.bind(node.target, item)
            for statement in node.body:
                self.visit(statement)

    def visit_Expr(self, node: ast.Expr) -> None:
        self.value(node.value)

    def visit_If(self, node: ast.If) -> None:
        self.value(node.test)
        for statement in node.body + node.orelse:
            self.visit(statement)

    def visit_Assert(self, node: ast.Assert) -> None:
        self.value(node.test)

    def bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = merged(self.names.get(target.id, UNKNOWN), value)
        elif isinstance(target, ast.Tuple):
            values = (
                value if isinstance(value, tuple) and len(value) == len(target.elts) else [UNKNOWN] * len(target.elts)
            )
            for element, item in zip(target.elts, values, strict=True):
                self.bind(element, item)
        elif isinstance(target, ast.Attribute) and isinstance(owner := self.value(target.value), Instance):
            owner.attributes[target.attr] = merged(owner.attributes.get(target.attr, UNKNOWN), value)
        elif isinstance(target, ast.Subscript) and isinstance(holder := self.value(target.value), dict):
            key = self.value(target.slice)
            if isinstance(key, str) and isinstance(target.value, ast.Name):
                self.names[target.value.id] = {**holder, key: value}

    # Expressions

    def value(self, node: ast.expr) -> Any:
        """The abstract value of an expression; its reads are recorded on the way."""
        method = getattr(self, f"value_{type(node).__name__.lower()}", None)
        if method is not None:
            return method(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return UNKNOWN

    def value_constant(self, node: ast.Constant) -> Any:
        return node.value

    def value_name(self, node: ast.Name) -> Any:
        if node.id in self.names:
            return self.names[node.id]
        if node.id in self.imports:
            module, name = self.imports[node.id]
            return getattr(importlib.import_module(module), name, UNKNOWN)
        return getattr(self.module, node.id, UNKNOWN)

    def value_tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.value(element) for element in node.elts)

    def value_list(self, node: ast.List) -> Any:
        return [self.value(element) for element in node.elts]

    def value_dict(self, node: ast.Dict) -> Any:
        return {
            key: self.value(value)
            for key, value in zip((self.value(key) if key else UNKNOWN for key in node.keys), node.values, strict=True)
            if isinstance(key, str)
        }

    def value_dictcomp(self, node: ast.DictComp) -> Any:
        """`{key: d.get(key, {}) for key in ("a", "b")}`."""
        result = {}
        (loop,) = node.generators
        items = self.value(loop.iter)
        for item in items if isinstance(items, tuple | list) else ():
            self.names.pop(getattr(loop.target, "id", ""), None)
            self.bind(loop.target, item)
            result[self.value(node.key)] = self.value(node.value)
        return result

    def value_listcomp(self, node: ast.ListComp) -> Any:
        for loop in node.generators:
            self.value(loop.iter)
        self.value(node.elt)
        return UNKNOWN

    def value_ifexp(self, node: ast.IfExp) -> Any:
        self.value(node.test)
        return merged(self.value(node.body), self.value(node.orelse))

    def value_attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if isinstance(owner, Instance) and node.attr in owner.attributes:
            return owner.attributes[node.attr]
        if getattr(node.value, "attr", None) == "_config" and node.attr in self.walk.attributes:
            return self.walk.attributes[node.attr]
        known = owner is not UNKNOWN and not isinstance(owner, Places | Instance)
        return getattr(owner, node.attr, UNKNOWN) if known else UNKNOWN

    def value_compare(self, node: ast.Compare) -> Any:
        left = self.value(node.left)
        for operator, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            if isinstance(operator, ast.In | ast.NotIn):
                self.child(right, left, UNKNOWN, node)
        return UNKNOWN

    def value_subscript(self, node: ast.Subscript) -> Any:
        owner, key = self.value(node.value), self.value(node.slice)
        if isinstance(owner, dict) and isinstance(key, str):
            return owner.get(key, UNKNOWN)
        return self.child(owner, key, UNKNOWN, node)

    def value_call(self, node: ast.Call) -> Any:
        arguments = [self.value(argument) for argument in node.args]
        keywords = {word.arg: self.value(word.value) for word in node.keywords}
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, self.value(node.func.value)
            if isinstance(owner, Places) or (isinstance(owner, dict) and name == "keys"):
                return self.method(owner, name, arguments, node)
            if isinstance(owner, dict) and name == "items":
                return [(key, value) for key, value in owner.items()]
            if name in ("copy", "deepcopy") and arguments:
                return arguments[0]
            if isinstance(owner, Instance):
                return self.call(getattr(owner.cls, name, UNKNOWN), [owner, *arguments], keywords, node)
        if not any(holds(value) for value in [*arguments, *keywords.values()]):
            return UNKNOWN  # nothing to follow, and what is called may import for seconds
        return self.call(self.value(node.func), arguments, keywords, node)

    def method(self, owner: Any, name: str, arguments: list[Any], node: ast.Call) -> Any:
        """A dict's method on a place of the JSON."""
        if name in ("get", "pop", "setdefault") and arguments:
            return self.child(owner, arguments[0], arguments[1] if len(arguments) > 1 else None, node)
        return owner if name in ("keys", "copy") else UNKNOWN

    def call(self, function: Any, arguments: list[Any], keywords: dict[str | None, Any], node: ast.Call) -> Any:
        """Follow a call that is handed a place; a class is followed into its `__init__`, a model is recorded."""
        if inspect.isclass(function) and issubclass(function, pydantic.BaseModel):
            self.model(function, keywords.get(None, UNKNOWN))
            return UNKNOWN
        followed = [*arguments, *keywords.values()]
        if not any(holds(value) for value in followed) or self.depth >= DEPTH:
            return UNKNOWN
        if not str(getattr(function, "__module__", "")).startswith("deepspeed"):
            return UNKNOWN
        if inspect.isclass(function):
            arguments, function = [Instance(function), *arguments], function.__init__
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not inspect.isfunction(function) or not Path(inspect.getfile(function)).is_relative_to(ROOT):
            return UNKNOWN
        parameters = inspect.signature(function).parameters
        bound: dict[str, Any] = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        bound.update(zip(parameters, arguments, strict=False))
        bound.update({word: value for word, value in keywords.items() if word})
        return self.walk.enter(function, bound, self.depth + 1, self.at(node))

    def model(self, model: type[pydantic.BaseModel], value: Any) -> None:
        if isinstance(value, Places):
            self.walk.models.update(dict.fromkeys(value.places, model))
        elif isinstance(value, dict):
            for name, part in value.items():
                self.model(model.model_fields[name].annotation, part)  # type: ignore[arg-type]

    def child(self, owner: Any, key: Any, default: Any, node: Any) -> Any:
        """The places of `key` in `owner`, read here."""
        if not isinstance(owner, Places):
            return UNKNOWN
        step = key if isinstance(key, str) else "*"
        places = frozenset((*place, step) for place in owner.places)
        for place in places:
            self.walk.read(place, default, self.at(node))
        return Places(places)


def _copies_items(node: ast.For) -> bool:
    """`for key, value in block.items(): copy[key] = value`."""
    first = node.body[0]
    return (
        isinstance(node.iter, ast.Call)
        and getattr(node.iter.func, "attr", "") == "items"
        and len(node.body) == 1
        and isinstance(first, ast.Assign)
        and isinstance(first.targets[0], ast.Subscript)
        and isinstance(first.targets[0].value, ast.Name)
        and isinstance(first.value, ast.Name)
        and ast.dump(first.targets[0].slice) == ast.dump(ast.Name(node.target.elts[0].id, ast.Load()))  # type: ignore[attr-defined]
    )
