"""The text of a DeepSpeed JSON: what is in it, where each key and value stands, and who can read it.

Two readers meet such a file. DeepSpeed reads files as Hjson (comments, missing quotes and commas pass) and refuses a
key given twice (`deepspeed/runtime/config.py`); Hugging Face, this project and DeepSpeed's autotuner read strict JSON,
where for most the last of two keys wins silently. Both verdicts are given, each with line and column.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Document = dict[str, Any]
AUTO = "auto"
"""A value that is left to the run."""
Place = tuple[str, ...]
"""The keys from the top of the JSON to a value, as in `rules.findings`."""
MOST_BYTES = 1_000_000
"""A DeepSpeed JSON has some kilobytes; a longer file is something else, and Hjson's reader a second a megabyte."""
MOST_NESTING = 100
"""DeepSpeed's deepest block has seven levels; its Hjson reader ends in a RecursionError at some hundreds."""


@dataclass(frozen=True)
class Position:
    """A character of the text; both count from 1, a tab is one column."""

    line: int
    column: int


@dataclass(frozen=True)
class Fault:
    """Why a reader does not take the text. `position` is None where there is none to name."""

    message: str
    position: Position | None = None


@dataclass
class Source:
    """What was read. `document` is None where no reader takes the text, or where the file is `unfit`.

    `unfit` says what is wrong for every reader: no text, too long, nested too deep, no object.
    `keys` and `values` hold where the key and the value of each place begin; an element of a list is a place too, named
    by its number. `duplicates` are the second and later uses of a key in its block. `unquoted` are the values that
    Hjson takes for strings since neither quotes nor a number, true, false or null stand there: `True,` of a pasted
    Python dict.
    """

    document: Document | None = None
    unfit: Fault | None = None
    json_fault: Fault | None = None
    hjson_fault: Fault | None = None
    keys: dict[Place, Position] = field(default_factory=dict)
    values: dict[Place, Position] = field(default_factory=dict)
    duplicates: list[tuple[Place, Position]] = field(default_factory=list)
    unquoted: dict[Place, str] = field(default_factory=dict)

    def note_key(self, place: Place, position: Position) -> None:
        """A key stands there, for the first time or again."""
        if place in self.keys:
            self.duplicates.append((place, position))
        self.keys[place] = position

    def position(self, place: Place) -> Position | None:
        """Where `place` stands: its key, or where it is absent the innermost block around it."""
        found = self.keys.get(place) or self.values.get(place)
        while found is None and place:
            place = place[:-1]
            found = self.values.get(place)
        return found


def read(path: Path) -> Source:
    """What the file holds.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        return Source(unfit=Fault(f"longer than {MOST_BYTES:,} bytes, so no DeepSpeed JSON"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        position = Position(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return Source(unfit=Fault("not UTF-8 text" + (" but UTF-16; save it as UTF-8" if wide else ""), position))
    return parse(text.replace("\r\n", "\n").replace("\r", "\n"))  # as Python's own text files do


def parse(text: str) -> Source:
    """What the text holds; its lines end in newlines alone."""
    source = Source()
    try:
        strict = _read_json(text, source)
        loose = _read_hjson(text, source)
    except _TooDeepError as error:
        return Source(unfit=Fault(f"nested deeper than {MOST_NESTING} blocks", error.position))
    document = strict if source.json_fault is None or source.hjson_fault else loose
    if isinstance(document, dict):
        source.document = document
    elif source.json_fault is None or source.hjson_fault is None:
        found = {list: "list", str: "string", bool: "truth value", type(None): "null"}.get(type(document), "number")
        message = f"must hold a JSON object in braces, not a {found}"
        source.unfit = Fault(message, source.values.get((), Position(1, 1)))
    return source


class _NoJsonNumberError(ValueError):
    """Its text is the constant: NaN, Infinity or -Infinity."""


class _TooDeepError(Exception):
    def __init__(self, position: Position | None = None) -> None:
        self.position = position


def _refuse_constant(name: str) -> None:
    raise _NoJsonNumberError(name)


def _read_json(text: str, source: Source) -> Any:
    """What Python's `json` makes of the text, None where it refuses; fills the source's `json_fault`."""
    value: Any = None
    try:
        value = json.loads(text)
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        source.json_fault = Fault(error.msg.removesuffix(" at"), Position(error.lineno, error.colno))
    except RecursionError:
        raise _TooDeepError from None
    except _NoJsonNumberError as error:
        source.json_fault = Fault(f"{error} is no JSON; Python's reader takes it for a number, Hjson for a string")
    except ValueError as error:  # a number of more digits than Python converts
        source.json_fault = Fault(str(error).partition(":")[0])
    return value


def _read_hjson(text: str, source: Source) -> Any:
    """What DeepSpeed's own reader makes of the text, None where it refuses; fills positions and `hjson_fault`.

    Hjson's reader ends in an IndexError on an open comment and in an OverflowError on 1e999, and so does DeepSpeed.
    """
    try:
        from hjson import HjsonDecodeError
    except ImportError:
        source.hjson_fault = Fault("whether DeepSpeed reads it as Hjson is not known: hjson is not installed")
        if source.json_fault is None:
            _locate(text, source)
        return None
    tracker = _Tracker(text, source)
    try:
        return tracker.decode()
    except HjsonDecodeError as error:
        message = re.sub(r" \(.*\)$", "", error.msg).replace("%r", repr(text[error.pos : error.pos + 1]))
        source.hjson_fault = Fault(message.removesuffix(" at"), Position(error.lineno, error.colno))
    except IndexError:
        source.hjson_fault = Fault("the text ends within a comment or a string", tracker.position(tracker.last))
    except (OverflowError, ValueError) as error:
        source.hjson_fault = Fault(str(error).partition(":")[0], tracker.position(tracker.last))
    return None


def _locate(text: str, source: Source) -> None:
    """Fills the positions of a text that is known to be strict JSON."""
    tokens = [(match[0], match.start()) for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[][{},:]|[^][{},:"\s]+', text)]
    lines = _Lines(text)

    def value(at: int, place: Place) -> int:
        opening, start = tokens[at]
        source.values[place] = lines.position(start)
        if opening not in ("{", "["):
            return at + 1
        if len(place) >= MOST_NESTING:
            raise _TooDeepError(lines.position(start))
        at, number, closing = at + 1, 0, {"{": "}", "[": "]"}[opening]
        while tokens[at][0] != closing:
            name = str(number)
            if opening == "{":
                name = json.loads(tokens[at][0])
                source.note_key((*place, name), lines.position(tokens[at][1]))
                at += 2
            at, number = value(at, (*place, name)), number + 1
            at += tokens[at][0] == ","
        return at + 1

    value(0, ())


class _Lines:
    """From an index into a text to its line and column."""

    def __init__(self, text: str) -> None:
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def position(self, index: int) -> Position:
        line = bisect_right(self.starts, index)
        return Position(line, index - self.starts[line - 1] + 1)


class _Tracker:
    """Hjson's decoder, with its two functions for blocks and lists replaced by ones that note where things stand."""

    def __init__(self, text: str, source: Source) -> None:
        from hjson import HjsonDecoder
        from hjson.decoder import getNext, scanKeyName
        from hjson.scanner import HjsonDecodeError

        self.text, self.source = text, source
        self.next, self.scan_key, self.error = getNext, scanKeyName, HjsonDecodeError
        self.decoder = HjsonDecoder()
        self.place: list[str] = []
        self.last = 0
        self.position = _Lines(text).position

    def decode(self) -> Any:
        """The whole text's value, as `hjson.loads` gives it."""
        from hjson.decoder import make_scanner

        self.decoder.parse_object, self.decoder.parse_array = self._object, self._array
        self.decoder.scan_once, self.decoder.scan_object_once = make_scanner(self.decoder)
        return self.decoder.decode(self.text)

    def _object(
        self,
        state: Any,
        encoding: Any,
        strict: bool,
        scan: Any,
        hook: Any,
        pairs_hook: Any,
        memo: Any,
        bare: bool = False,
    ) -> tuple[Document, int]:
        """`hjson.decoder.JSONObject`; `bare` is a root block without braces."""
        text, end = state
        self._enter(end if bare else end - 1)
        document: Document = {}
        character, end = self.next(text, end)
        while character != "}" or bare:
            start = end
            key, end = self.scan_key(text, end, encoding, strict)
            character, end = self.next(text, end)
            if character != ":":
                raise self.error("Expecting ':' delimiter", text, end)
            _, end = self.next(text, end + 1)
            self.source.note_key((*self.place, key), self.position(start))
            document[key], end = self._value(scan, text, end, key)
            character, end = self.next(text, end)
            if character == ",":
                character, end = self.next(text, end + 1)
            if bare and character == "":
                return document, end
        return document, end + 1

    def _array(self, state: Any, scan: Any) -> tuple[list[Any], int]:
        """`hjson.decoder.JSONArray`."""
        text, end = state
        self._enter(end - 1)
        values: list[Any] = []
        character, end = self.next(text, end)
        if character == "":
            raise self.error("End of input while parsing an array (did you forget a closing ']'?)", text, end)
        while character != "]":
            value, end = self._value(scan, text, end, str(len(values)))
            values.append(value)
            character, end = self.next(text, end)
            if character == ",":
                character, end = self.next(text, end + 1)
        return values, end + 1

    def _enter(self, start: int) -> None:
        self.last = start
        self.source.values[tuple(self.place)] = self.position(start)
        if len(self.place) >= MOST_NESTING:
            raise _TooDeepError(self.position(start))

    def _value(self, scan: Any, text: str, start: int, name: str) -> tuple[Any, int]:
        self.last = start
        self.place.append(name)
        place = tuple(self.place)
        self.source.values[place] = self.position(start)
        value, end = scan(text, start)
        if isinstance(value, str) and text[start] not in "\"'":
            self.source.unquoted[place] = value
        self.place.pop()
        return value, end
