"""Shards of token ids, as a datasets pipeline saves them, train like text: without padding, with their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_scale.arguments import DataArguments, UserError
from lm_scale.data.tokens import TokenFiles, prepare


def shards(folder: Path, rows: list[dict[str, list[int]]], per_file: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for start in range(0, len(rows), per_file):
        pq.write_table(pa.Table.from_pylist(rows[start : start + per_file]), folder / f"{start:05}.parquet")
    return folder


def prepared(dataset: Path, cache: Path, **arguments: Any) -> TokenFiles:
    return prepare(DataArguments(dataset=str(dataset), cache_dir=str(cache), **arguments), None)


PADDED = [
    {"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "labels": [5, 6, 7, -100, -100]},
    {"input_ids": [8, 9, 0, 0, 0], "attention_mask": [1, 1, 0, 0, 0], "labels": [-100, 9, -100, -100, -100]},
    {"input_ids": [0, 0, 0, 0, 0], "attention_mask": [0, 0, 0, 0, 0], "labels": [-100] * 5},
    {"input_ids": [0, 3, 1000, 4, 2], "attention_mask": [0, 1, 1, 1, 1], "labels": [-100, -100, -100, 4, 2]},
]


def test_padding_is_stripped_and_masked_labels_stay_masked(tmp_path: Path) -> None:
    files = prepared(shards(tmp_path / "shards", PADDED), tmp_path / "cache")
    assert files.eval.ids.tolist() == [5, 6, 7]
    assert files.eval.labelled is None  # every label that padding did not mask is there
    assert files.train.ids.tolist() == [8, 9, 3, 1000, 4, 2]
    assert files.train.offsets.tolist() == [0, 2, 6]
    assert files.train.labelled is not None
    assert files.train.labelled.tolist() == [0, 1, 0, 0, 1, 1]
    assert (files.meta["vocab_size"], files.meta["eos_id"], files.tokenizer_path) == (1001, None, None)
    assert files.eval.bytes is None


def test_ids_alone_are_enough(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}, {"input_ids": [6, 7]}]
    files = prepared(shards(tmp_path / "shards", rows), tmp_path / "cache")
    assert files.train.ids.tolist() == [4, 5, 6, 7]
    assert files.train.labelled is None


def test_a_tokenizer_ends_each_document_once(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"input_ids": [40, 41]}, {"input_ids": [42, 43, 0]}, {"input_ids": [44]}]  # 0 is its end of text
    files = prepared(shards(tmp_path / "shards", rows), tmp_path / "cache", tokenizer=str(tokenizer))
    assert files.eval.ids.tolist() == [40, 41, 0]
    assert files.train.ids.tolist() == [42, 43, 0, 44, 0]


def test_large_and_fixed_size_lists_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number, kind in enumerate((pa.large_list(pa.int32()), pa.list_(pa.uint16(), 2))):
        table = pa.table({"input_ids": pa.array([[1, 2], [3, 4]], kind)})
        pq.write_table(table, tmp_path / "shards" / f"{number}.parquet")
    assert prepared(tmp_path / "shards", tmp_path / "cache").train.ids.tolist() == [3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input_ids": [1, 2], "labels": [2, -100]}] * 3, r"00000\.parquet: row 0: label 2 of token 1 is neither"),
        (
            [{"input_ids": [1, 2], "labels": [1, 2]}] * 2 + [{"input_ids": [1, 2], "labels": [1]}],
            r"00002\.parquet: row 0: labels and input_ids differ in length",
        ),
        ([{"input_ids": [1, -5]}] * 3, r"00000\.parquet: row 0: -5 is no token id"),
        ([{"input_ids": [1, None]}] * 3, r"00000\.parquet: input_ids: holds nulls"),
        ([{"input_ids": ["a", "b"]}] * 3, r"00000\.parquet: input_ids: holds list<.*string>, not lists of integers"),
        ([{"input_ids": 3}] * 3, r"00000\.parquet: input_ids: holds int64, not lists of integers"),
    ],
)
def test_what_tokens_cannot_say_is_one_line(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepared(shards(tmp_path / "shards", rows), tmp_path / "cache")


def test_ids_beyond_the_tokenizers_vocabulary_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"input_ids": [1, 50_000]}] * 3
    with pytest.raises(UserError, match=r"token id 50000 is outside the tokenizer's vocabulary of \d+"):
        prepared(shards(tmp_path / "shards", rows), tmp_path / "cache", tokenizer=str(tokenizer))


def test_ids_to_train_on_and_text_to_evaluate_need_a_tokenizer(tmp_path: Path, jsonl: Path, tokenizer: Path) -> None:
    folder = shards(tmp_path / "shards", [{"input_ids": [40, 41]}] * 3)
    with pytest.raises(UserError, match=r"token ids on one side, text on the other; give --tokenizer"):
        prepared(folder, tmp_path / "cache", eval_dataset=str(jsonl))
    files = prepared(folder, tmp_path / "cache", eval_dataset=str(jsonl), tokenizer=str(tokenizer))
    assert (files.train.docs, files.eval.docs) == (3, 300)
