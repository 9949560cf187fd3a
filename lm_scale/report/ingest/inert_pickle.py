"""What a pickle describes, read without running it: an object becomes its class's name, arguments and attributes.

Unpickling calls whatever a file names. Here the opcodes that call or import are only noted, so that the settings in a
stranger's `training_args.bin` can be read: nothing is imported, nothing of the file is executed.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAXIMUM_BYTES = 1 << 20
"""Settings take some thousands; a larger pickle holds something else and is not read."""

VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING", "STRING"),
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Opcodes (pickletools) that push a value of their own, by what they push."""


@dataclass(eq=False)
class Described:
    """An object that the pickle would make: the name of its class, what it is called with, and its state."""

    name: str
    arguments: Any = None
    state: Any = None


class NotPlainError(Exception):
    """The pickle is damaged, too large, or made of more than plain values and objects."""


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`: plain values, and a `Described` for every object.

    Raises:
        NotPlainError: it is no such file, or holds what is not understood here (a tensor).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1 or archive.getinfo(names[0]).file_size > MAXIMUM_BYTES:
                raise NotPlainError(f"{path}: no pickle of a reasonable size")
            return describe(archive.read(names[0]))
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise NotPlainError(f"{path}: {error}") from None


def describe(data: bytes) -> Any:
    """The value that the pickle `data` describes.

    Raises:
        NotPlainError: it cannot be read so.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.do(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise NotPlainError(str(error)) from None
    raise NotPlainError("no end")


class _Machine:
    """The pickle machine with calls replaced by notes. Lists and dicts are the only things that change once made."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in TUPLES:
            self.stack.append(tuple(self._take(TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("EMPTY_LIST", "LIST"):
            self.stack.append(self._since_mark() if name == "LIST" else [])
        elif name in ("EMPTY_DICT", "EMPTY_SET"):
            self.stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "DICT":
            items = self._since_mark()
            self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name == "TUPLE":
            self.stack.append(tuple(self._since_mark()))
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        """The opcodes that fill a container, or that would import and call."""
        if name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._take(1) if name == "APPEND" else self._since_mark()
            if isinstance(self.stack[-1], list):
                self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._take(2) if name == "SETITEM" else self._since_mark()
            if isinstance(self.stack[-1], dict):
                self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            self.stack.append(Described(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            self.stack.append(Described(".".join(map(str, self._take(2)))))
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._take(2)
            self.stack.append(Described(called.name, arguments))
        elif name == "BUILD":
            (state,) = self._take(1)
            self.stack[-1].state = state
        else:
            raise NotPlainError(f"{name} is not understood")

    def _take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise NotPlainError("values are missing")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _since_mark(self) -> list[Any]:
        return self._take(len(self.stack) - self.marks.pop())
