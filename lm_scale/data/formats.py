"""The kinds of files that hold text: one reader each, in constant memory.

A reader yields texts and, with each, the bytes of the file that are read so far. A file that cannot be read, and a line
or column that is not what it should be, is a `UserError` that names the place.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_scale.arguments import UserError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
LONGEST_DOCUMENT = 4 * 2**20
END_OF_TEXT = "<|endoftext|>"

_CHUNK = 2**20
_MARKER_SEARCH = 64 * 2**20  # characters of a single .txt without END_OF_TEXT after which its blank lines count


def kind_of(file: Path) -> str | None:
    """Which of `KINDS` the name says; None for another."""
    name = file.name.lower()
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def pieces(document: str) -> Iterator[str]:
    """The document, cut at line ends into parts of at most `LONGEST_DOCUMENT` characters."""
    while len(document) > LONGEST_DOCUMENT:
        piece = _first_piece(document)
        yield piece
        document = document[len(piece) :]
    yield document


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile` that is read page by page.

    Raises:
        UserError: the file cannot be read or is no parquet.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file, buffer_size=_CHUNK, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read as parquet: {_first_line(error)}") from None


def parquet_rows(file: Path, columns: list[str]) -> Iterator[tuple[Any, float]]:
    """Batches (`pyarrow.RecordBatch`) of some columns of a file, each with the share of its rows that is read."""
    import pyarrow

    table = open_parquet(file)
    rows, done = max(table.metadata.num_rows, 1), 0
    try:
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            done += batch.num_rows
            yield batch, done / rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: damaged parquet: {_first_line(error)}") from None


def missing_column(where: str, column: str, columns: list[str]) -> UserError:
    """The error of a table without the text column."""
    return UserError(f"{where}: no column {column}; give --text_column one of {', '.join(sorted(columns)) or 'none'}")


def read_parquet(file: Path, column: str) -> Iterator[tuple[str, int]]:
    """The rows of a text column."""
    import pyarrow

    schema = open_parquet(file).schema_arrow
    if column not in schema.names:
        raise missing_column(str(file), column, schema.names)
    kind = schema.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
        raise UserError(f"{file}: column {column} holds {kind}, not text; give --text_column")
    size = file.stat().st_size
    for batch, share in parquet_rows(file, [column]):
        for text in batch.column(0).to_pylist():
            yield text or "", int(share * size)


def read_jsonl(file: Path, column: str) -> Iterator[tuple[str, int]]:
    """The `column` of each line, one JSON object a line, compressed where the name ends in .gz."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(file, "rb"))
        lines: Any = stack.enter_context(gzip.open(raw)) if file.name.lower().endswith(".gz") else raw
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_text(line, column, f"{file}:{number}"), raw.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file}: damaged gzip: {_first_line(error)}") from None


def _json_text(line: bytes, column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.colno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a line must be a JSON object, like {{{json.dumps(column)}: ...}}")
    if column not in row:
        raise missing_column(where, column, list(row))
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: column {column} holds {type(text).__name__}, not text; give --text_column")
    # Half a surrogate pair can be written in JSON, but it is no text and no tokenizer takes it.
    return text.encode("utf-8", "replace").decode() if text and b"\\u" in line else text or ""


def read_txt(file: Path, alone: bool) -> Iterator[tuple[str, int]]:
    """Documents of one .txt, without the newlines around them; a single file may be split at its blank lines."""
    separator = re.compile(re.escape(END_OF_TEXT))
    if alone and not _has_marker(file):
        separator = re.compile(re.escape(END_OF_TEXT) + r"|\n[ \t]*(?=\n)")
    rest = ""
    with open(file, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
        while chunk := text.read(_CHUNK):
            *whole, rest = separator.split(rest + chunk)
            for document in whole:
                yield document.strip("\n"), raw.tell()
            # A marker that is only half read lies behind what is cut off.
            while len(rest) > LONGEST_DOCUMENT + len(END_OF_TEXT):
                piece = _first_piece(rest)
                rest = rest[len(piece) :]
                yield piece.strip("\n"), raw.tell()
    yield rest.strip("\n"), file.stat().st_size


def _has_marker(file: Path) -> bool:
    tail, done = "", 0
    with open(file, encoding="utf-8-sig") as text:
        while done < _MARKER_SEARCH and (chunk := text.read(_CHUNK)):
            if END_OF_TEXT in tail + chunk:
                return True
            tail, done = chunk[-len(END_OF_TEXT) :], done + len(chunk)
    return False


def _first_piece(text: str) -> str:
    end = text.rfind("\n", 0, LONGEST_DOCUMENT) + 1
    return text[: end or LONGEST_DOCUMENT]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
