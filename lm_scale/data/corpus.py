"""Text in: what `--dataset` names, as a stream of documents in constant memory.

A document is a file or a topic of `builtin:python`, a row of a table, a line of a .jsonl, or a .txt file. In a .txt
`<|endoftext|>` ends a document where the file has it; a single .txt without it is split at its blank lines. Documents
without text are left out, and a document above `LONGEST_DOCUMENT` characters is cut at its line ends.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lm_scale.arguments import UserError

LONGEST_DOCUMENT = 4 * 2**20
END_OF_TEXT = "<|endoftext|>"
KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")

_CHUNK = 2**20
_MARKER_SEARCH = 64 * 2**20  # characters of a single .txt that are searched for END_OF_TEXT before its blank lines count


class Corpus:
    """Documents in a fixed order. `read_share` says how much of the current pass is read, from 0 to 1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read_share = 0.0

    def fingerprint(self) -> str:
        """Changes when the text may have changed."""
        raise NotImplementedError

    def documents(self) -> Iterator[str]:
        """Every document, none without text, none longer than `LONGEST_DOCUMENT` characters.

        Raises:
            UserError: a source cannot be read; the line names it.
        """
        for text in self._texts():
            if text and not text.isspace():
                yield from _pieces(text)

    def count(self, at_most: int | None = None) -> int:
        """The number of documents; reading stops at `at_most`."""
        return sum(1 for _ in itertools.islice(self.documents(), at_most))

    def _texts(self) -> Iterator[str]:
        raise NotImplementedError


def open_corpus(dataset: str, text_column: str) -> Corpus:
    """The corpus that `--dataset` names: `builtin:python`, a file, a folder, a glob, or a hub name `name[:config]`.

    Raises:
        UserError: there is nothing of that name, or nothing in it that can be read.
    """
    if dataset.startswith("builtin:"):
        if dataset != "builtin:python":
            raise UserError(f"--dataset {dataset}: the only built-in text is builtin:python")
        return PythonCorpus(dataset)
    files = find_files(dataset)
    if files is None:
        from lm_scale.data.hub import HubCorpus

        return HubCorpus(dataset, text_column)
    return FileCorpus(dataset, files, text_column)


def find_files(dataset: str) -> list[Path] | None:
    """The files that a path or glob names, in the order of their names; None where `dataset` must be a hub name.

    Raises:
        UserError: it can only be a path, and there is nothing to read at it.
    """
    path = Path(dataset).expanduser()
    kinds = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
    if path.is_file():
        if _kind(path) is None:
            raise UserError(f"--dataset {dataset}: not a kind of file that can be read; give {kinds}")
        return [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if _is_data(file, path)]
        if not files:
            raise UserError(f"--dataset {dataset}: no {kinds} file in this folder")
        return sorted(files)
    if glob.has_magic(dataset):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        files = [file for file in found if file.is_file() and _kind(file)]
        if not files:
            raise UserError(f"--dataset {dataset}: no {kinds} file matches this pattern")
        return sorted(files)
    if dataset.startswith(("/", ".", "~")) or dataset.endswith(KINDS) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[^/]+)?", dataset):
        raise UserError(f"--dataset {dataset}: no such file or folder")
    return None


class FileCorpus(Corpus):
    """The files of a path or glob, one after another in the order of their names."""

    def __init__(self, name: str, files: list[Path], text_column: str) -> None:
        super().__init__(name)
        self.files = files
        self.text_column = text_column

    def fingerprint(self) -> str:
        return file_fingerprint(self.files)

    def _texts(self) -> Iterator[str]:
        sizes = [file.stat().st_size for file in self.files]
        whole, finished = max(sum(sizes), 1), 0
        for file, size in zip(self.files, sizes, strict=True):
            try:
                for text, position in self._read(file):
                    self.read_share = (finished + position) / whole
                    yield text
            except OSError as error:
                raise UserError(f"{file}: {error.strerror or error}") from None
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 text ({error.reason}); convert it to UTF-8") from None
            finished += size

    def _read(self, file: Path) -> Iterator[tuple[str, int]]:
        """Texts of one file, each with the bytes of the file that are read so far."""
        kind = _kind(file)
        if kind == ".txt":
            return _read_txt(file, alone=len(self.files) == 1)
        if kind == ".parquet":
            return _read_parquet(file, self.text_column)
        return _read_jsonl(file, self.text_column)


class PythonCorpus(Corpus):
    """The running interpreter's own library sources, without its tests, and its documentation topics.

    The order, by the SHA-1 of the name, mixes the subjects and is the same on every machine.
    """

    def fingerprint(self) -> str:
        """From names and sizes alone, so that it does not depend on where and when Python was installed."""
        sizes = [(name, path.stat().st_size if path else 0) for name, path in self._entries()]
        return hashlib.sha256(repr((sys.version_info[:3], sizes)).encode()).hexdigest()

    def _texts(self) -> Iterator[str]:
        from pydoc_data import topics  # type: ignore[import-untyped, unused-ignore]

        entries = self._entries()
        for number, (name, path) in enumerate(entries):
            self.read_share = number / len(entries)
            if path is None:
                yield topics.topics[name.removeprefix("topic:")]
            else:
                yield path.read_bytes().decode("utf-8", "replace")

    def _entries(self) -> list[tuple[str, Path | None]]:
        from pydoc_data import topics

        root = Path(sysconfig.get_path("stdlib"))
        entries: list[tuple[str, Path | None]] = [(f"topic:{name}", None) for name in topics.topics]
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if not _NO_LIBRARY.fullmatch(name)]
            for name in files:
                relative = (Path(folder) / name).relative_to(root).as_posix()
                # The topics are documents of their own; the build's configuration holds paths of this machine.
                if name.endswith(".py") and relative != "pydoc_data/topics.py" and not name.startswith("_sysconfigdata"):
                    entries.append((relative, root / relative))
        return sorted(entries, key=lambda entry: hashlib.sha1(entry[0].encode()).digest())


_NO_LIBRARY = re.compile(r"tests?|idle_test|site-packages|dist-packages|__pycache__|config-.*")


def file_fingerprint(files: list[Path]) -> str:
    """From paths, sizes and times of change."""
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


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


def _read_parquet(file: Path, column: str) -> Iterator[tuple[str, int]]:
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


def _read_jsonl(file: Path, column: str) -> Iterator[tuple[str, int]]:
    with open(file, "rb") as raw:
        lines: IO[bytes] = gzip.open(raw) if file.name.endswith(".gz") else raw  # type: ignore[assignment]
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


def _read_txt(file: Path, alone: bool) -> Iterator[tuple[str, int]]:
    """Documents of one .txt, without the newlines around them; a single file may be split at its blank lines."""
    separator = re.compile(re.escape(END_OF_TEXT))
    if alone and not _has_marker(file):
        separator = re.compile(re.escape(END_OF_TEXT) + r"|\n[ \t]*(?=\n)")
    rest = ""
    with open(file, encoding="utf-8-sig") as text:
        while chunk := text.read(_CHUNK):
            *whole, rest = separator.split(rest + chunk)
            for document in whole:
                yield document.strip("\n"), text.buffer.tell()
            # A marker that is only half read lies behind what is cut off.
            while len(rest) > LONGEST_DOCUMENT + len(END_OF_TEXT):
                piece = _first_piece(rest)
                rest = rest[len(piece) :]
                yield piece.strip("\n"), text.buffer.tell()
    yield rest.strip("\n"), file.stat().st_size


def _has_marker(file: Path) -> bool:
    tail, done = "", 0
    with open(file, encoding="utf-8-sig") as text:
        while done < _MARKER_SEARCH and (chunk := text.read(_CHUNK)):
            if END_OF_TEXT in tail + chunk:
                return True
            tail, done = chunk[-len(END_OF_TEXT) :], done + len(chunk)
    return False


def _pieces(document: str) -> Iterator[str]:
    while len(document) > LONGEST_DOCUMENT:
        piece = _first_piece(document)
        yield piece
        document = document[len(piece) :]
    yield document


def _first_piece(text: str) -> str:
    end = text.rfind("\n", 0, LONGEST_DOCUMENT) + 1
    return text[: end or LONGEST_DOCUMENT]


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    return not hidden and _kind(file) is not None and file.is_file()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
