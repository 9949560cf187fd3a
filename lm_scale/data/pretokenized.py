"""Parquet shards that hold token ids already: `input_ids`, and `attention_mask` and `labels` where there are any.

A row is a document. Padding, where the attention mask is 0, is stripped. A label is the token itself, or -100 where the
token carries none; anything else cannot be said with tokens alone and is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_scale.arguments import UserError
from lm_scale.data.corpus import file_fingerprint, find_files
from lm_scale.data.formats import open_parquet, parquet_rows

IGNORED_LABEL = -100

Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]


class PretokenizedCorpus:
    """Documents of token ids in a fixed order. `read_share` says how much of the current pass is read, from 0 to 1."""

    def __init__(self, name: str, files: list[Path]) -> None:
        self.name = name
        self.files = files
        self.read_share = 0.0

    def fingerprint(self) -> str:
        """Changes when the ids may have changed."""
        return file_fingerprint(self.files)

    def documents(self) -> Iterator[Row]:
        """Ids and whether each carries a label (1 or 0), of every row that is not all padding.

        Raises:
            UserError: a file cannot be read, or a row breaks the rules above; the line names both.
        """
        for number, file in enumerate(self.files):
            first_row = 0
            for columns, share in self._column_batches(file, ["input_ids", "attention_mask", "labels"]):
                yield from _documents(columns, f"{file}", first_row)
                first_row += len(columns["input_ids"])
                self.read_share = (number + share) / len(self.files)

    def count(self, at_most: int | None = None) -> int:
        """The number of rows, or `at_most` if there are more."""
        rows = sum(int(open_parquet(file).metadata.num_rows) for file in self.files)
        return rows if at_most is None else min(rows, at_most)

    def largest_id(self) -> int:
        """The largest token id of all, padding included."""
        largest = -1
        for file in self.files:
            for columns, _ in self._column_batches(file, ["input_ids"]):
                values, _ = _flat(columns["input_ids"], f"{file}: input_ids")
                largest = max(largest, int(values.max(initial=-1)))
        return largest

    def _column_batches(self, file: Path, wanted: list[str]) -> Iterator[tuple[dict[str, Any], float]]:
        names = open_parquet(file).schema_arrow.names
        if "input_ids" not in names:
            raise UserError(f"{file}: no column input_ids, unlike {self.files[0].name}; keep token ids and text apart")
        for batch, share in parquet_rows(file, [name for name in wanted if name in names]):
            yield dict(zip(batch.schema.names, batch.columns, strict=True)), share


def open_pretokenized(dataset: str) -> PretokenizedCorpus | None:
    """The shards that `--dataset` names if they are parquet with a column `input_ids`, else None.

    Raises:
        UserError: the path names nothing that can be read.
    """
    files = None if dataset.startswith("builtin:") else find_files(dataset)
    if not files or not files[0].name.lower().endswith(".parquet"):
        return None
    if "input_ids" not in open_parquet(files[0]).schema_arrow.names:
        return None
    strangers = [file for file in files if not file.name.lower().endswith(".parquet")]
    if strangers:
        raise UserError(f"{strangers[0]}: text among shards of token ids; keep them apart")
    return PretokenizedCorpus(dataset, files)


def _documents(columns: dict[str, Any], file: str, first_row: int) -> Iterator[Row]:
    ids, lengths = _flat(columns["input_ids"], f"{file}: input_ids")
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    keep = np.ones(len(ids), bool)
    labelled = np.ones(len(ids), bool)
    for name in ("attention_mask", "labels"):
        if name not in columns:
            continue
        values, other_lengths = _flat(columns[name], f"{file}: {name}")
        if not np.array_equal(lengths, other_lengths):
            row = first_row + int(np.argmax(lengths != other_lengths))
            raise UserError(f"{file}: row {row}: {name} and input_ids differ in length")
        if name == "attention_mask":
            keep = values != 0
        else:
            labelled = values != IGNORED_LABEL
            wrong = keep & labelled & (values != ids)
            if wrong.any():
                at = int(np.argmax(wrong))
                raise UserError(
                    f"{file}: row {first_row + int(row_of[at])}: label {values[at]} of token {ids[at]} is neither "
                    f"the token itself nor {IGNORED_LABEL}; give labels unshifted, as transformers takes them, or none"
                )
    if (keep & (ids < 0)).any():
        at = int(np.argmax(keep & (ids < 0)))
        raise UserError(f"{file}: row {first_row + int(row_of[at])}: {ids[at]} is no token id")
    ends = np.cumsum(np.bincount(row_of[keep], minlength=len(lengths)))
    ids, carried = ids[keep], labelled[keep].astype(np.uint8)
    for start, end in zip(np.concatenate(([0], ends[:-1])), ends, strict=True):
        if end > start:
            yield ids[start:end], carried[start:end]


def _flat(column: Any, where: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The values of a column of lists one after another, and the length of each list."""
    import pyarrow
    from pyarrow import compute

    try:
        lengths, values = compute.list_value_length(column), column.flatten()
        if lengths.null_count or values.null_count:
            raise UserError(f"{where}: holds nulls")
        numbers = values.to_numpy(zero_copy_only=False).astype(np.int64, casting="safe")
        return numbers, lengths.to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, AttributeError, TypeError):
        raise UserError(f"{where}: holds {column.type}, not lists of integers") from None
