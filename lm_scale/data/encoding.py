"""Documents to the files of one split, in constant memory: batches are encoded while those before are written."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lm_scale.arguments import UserError
from lm_scale.data.cache import Status
from lm_scale.data.corpus import Corpus
from lm_scale.data.pretokenized import PretokenizedCorpus, Row
from lm_scale.data.tokenizer import Encoder

Source = Corpus | PretokenizedCorpus

_BATCH_CHARACTERS = 2 * 2**20
_IN_FLIGHT = 2  # the cores that have no document left in one batch go on with the next


class Encoded(NamedTuple):
    """One document: ids with the end-of-text token, 1 where a label is carried (None: everywhere), bytes covered."""

    ids: npt.NDArray[Any]
    labelled: npt.NDArray[np.uint8] | None
    bytes: npt.NDArray[np.uint32] | None
    text_bytes: int


def following(source: Source, first: int | None, last: int | None, status: Status) -> Iterator[Any]:
    """Documents `first` to `last` of the source, reporting how far it is read."""
    for document in itertools.islice(source.documents(), first, last):
        status.share = source.read_share
        yield document


def encoded(
    source: Source,
    first: int | None,
    last: int | None,
    encoder: Encoder | None,
    with_bytes: bool,
    status: Status,
) -> Iterator[Encoded]:
    """Documents `first` to `last` of the source, encoded."""
    documents = following(source, first, last, status)
    if isinstance(source, PretokenizedCorpus):
        return _with_end(documents, encoder)
    assert encoder is not None
    return _encode(documents, encoder, with_bytes and encoder.has_offsets)


def write_split(
    folder: Path, split: str, documents: Iterable[Encoded], dtype: str, vocab_size: int
) -> dict[str, int | None]:
    """Write the files of one split; returns docs, tokens and text_bytes.

    Raises:
        UserError: an id lies outside the vocabulary.
        OSError: the disk is full or cannot be written.
    """
    docs, text_bytes = 0, 0
    all_labelled, from_text = True, True
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}

        def add(what: str, values: npt.NDArray[Any]) -> None:
            if what not in files:
                files[what] = stack.enter_context(open(folder / f"{split}.{what}", "wb", buffering=2**20))
            files[what].write(values.tobytes())

        end = 0
        add("offsets", np.zeros(1, np.int64))
        for document in documents:
            if int(document.ids.max()) >= vocab_size:
                raise UserError(
                    f"{split} split: token id {int(document.ids.max())} is outside the tokenizer's vocabulary of "
                    f"{vocab_size}; give the --tokenizer that made these ids"
                )
            add("ids", document.ids.astype(dtype))
            end += len(document.ids)
            add("offsets", np.array([end], np.int64))
            if document.labelled is not None:
                add("labelled", document.labelled)
                all_labelled = all_labelled and bool(document.labelled.all())
                from_text = False
            if document.bytes is not None:
                add("bytes", document.bytes)
            docs += 1
            text_bytes += document.text_bytes
    if all_labelled:
        (folder / f"{split}.labelled").unlink(missing_ok=True)
    return {"docs": docs, "tokens": end, "text_bytes": text_bytes if from_text else None}


def _with_end(rows: Iterable[Row], encoder: Encoder | None) -> Iterator[Encoded]:
    for ids, labelled in rows:
        if encoder is not None and ids[-1] != encoder.eos_id:
            ids, labelled = np.append(ids, encoder.eos_id), np.append(labelled, np.uint8(1))
        yield Encoded(ids, labelled, None, 0)


def _encode(documents: Iterable[str], encoder: Encoder, with_bytes: bool) -> Iterator[Encoded]:
    batches = _batches(documents)
    call: Any = encoder.encode_with_bytes if with_bytes else encoder.encode
    end_id, no_bytes = np.array([encoder.eos_id], np.uint32), np.zeros(1, np.uint32)
    with ThreadPoolExecutor(_IN_FLIGHT) as executor:
        in_flight = deque((batch, executor.submit(call, batch)) for batch in itertools.islice(batches, _IN_FLIGHT))
        while in_flight:
            texts, result = in_flight.popleft()
            result.result()
            in_flight.extend((batch, executor.submit(call, batch)) for batch in itertools.islice(batches, 1))
            for text, item in zip(texts, result.result(), strict=True):
                ids, covered = item if with_bytes else (item, None)
                yield Encoded(
                    np.concatenate((ids, end_id)),
                    None,
                    None if covered is None else np.concatenate((covered, no_bytes)),
                    len(text) if text.isascii() else len(text.encode()),
                )


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
