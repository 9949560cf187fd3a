"""Text in: what `--dataset` names, as a stream of documents in constant memory.

A document is a file or a topic of `builtin:python`, a row of a table, a line of a .jsonl, or a .txt file. In a .txt
`<|endoftext|>` ends a document where the file has it; a single .txt without it is split at its blank lines. Documents
without text are left out, and a document above `LONGEST_DOCUMENT` characters is cut at its line ends.
"""

from __future__ import annotations

import abc
import glob
import hashlib
import itertools
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lm_scale.arguments import UserError
from lm_scale.data.formats import KINDS, kind_of, pieces, read_jsonl, read_parquet, read_txt


class Corpus(abc.ABC):
    """Documents in a fixed order. `read_share` says how much of the current pass is read, from 0 to 1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read_share = 0.0

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Changes when the text may have changed."""

    def documents(self) -> Iterator[str]:
        """Every document, none without text, none longer than `LONGEST_DOCUMENT` characters.

        Raises:
            UserError: a source cannot be read; the line names it.
        """
        for text in self._texts():
            if text and not text.isspace():
                yield from pieces(text)

    def count(self, at_most: int | None = None) -> int:
        """The number of documents; reading stops at `at_most`."""
        return sum(1 for _ in itertools.islice(self.documents(), at_most))

    @abc.abstractmethod
    def _texts(self) -> Iterator[str]:
        """The texts as the source has them, empty and long ones too; keeps `read_share` up to date."""


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
        if kind_of(path) is None:
            raise UserError(f"--dataset {dataset}: not a kind of file that can be read; give {kinds}")
        return [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if _is_data(file, path)]
        if not files:
            raise UserError(f"--dataset {dataset}: no {kinds} file in this folder")
        return sorted(files)
    if glob.has_magic(dataset):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        files = [file for file in found if file.is_file() and kind_of(file)]
        if not files:
            raise UserError(f"--dataset {dataset}: no {kinds} file matches this pattern")
        return sorted(files)
    if dataset.startswith((".", "~")) or dataset.endswith(KINDS) or not _HUB_NAME.fullmatch(dataset):
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
        kind = kind_of(file)
        if kind == ".txt":
            return read_txt(file, alone=len(self.files) == 1)
        if kind == ".parquet":
            return read_parquet(file, self.text_column)
        return read_jsonl(file, self.text_column)


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
                unwanted = relative == "pydoc_data/topics.py" or name.startswith("_sysconfigdata")
                if name.endswith(".py") and not unwanted:
                    entries.append((relative, root / relative))
        return sorted(entries, key=lambda entry: hashlib.sha1(entry[0].encode()).digest())


_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^/]+)?")
_NO_LIBRARY = re.compile(r"tests?|idle_test|site-packages|dist-packages|__pycache__|config-.*")


def file_fingerprint(files: list[Path]) -> str:
    """From paths, sizes and times of change."""
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    return not hidden and kind_of(file) is not None and file.is_file()
