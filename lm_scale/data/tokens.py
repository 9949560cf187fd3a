"""A corpus as token ids on disk: encoded once, memory-mapped ever after.

A cache entry is a folder named by the SHA-256 of everything it was made from:

    meta.json          what it was made from and how much it holds
    tokenizer/         the tokenizer, as transformers loads it (not for shards of ids without `--tokenizer`)
    <split>.ids        all documents one after another, uint16 where the vocabulary fits, else uint32
    <split>.offsets    int64, documents + 1: where each document begins and the last one ends
    <split>.labelled   uint8, 1 where the token carries a label; absent where all do
    <split>.bytes      uint32, UTF-8 bytes each token covers; of evaluation text alone, and where the tokenizer tells

for the splits `train` and `eval`. A document ends with the end-of-text token, which covers no bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lm_scale.arguments import DataArguments, UserError
from lm_scale.data.cache import Status, make_once
from lm_scale.data.corpus import Corpus, open_corpus
from lm_scale.data.encoding import Source, encoded, following, write_split
from lm_scale.data.pretokenized import PretokenizedCorpus, open_pretokenized
from lm_scale.data.tokenizer import TRAINED_FINGERPRINT, Encoder, load_encoder, train_encoder

FORMAT = 1
EVAL_DOCS = 5000
EVAL_ONE_IN = 100


@dataclass(frozen=True)
class Tokens:
    """One split, memory-mapped; `ids[offsets[i]:offsets[i + 1]]` is document i."""

    name: str
    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.uint8] | None
    bytes: npt.NDArray[np.uint32] | None
    eos_id: int | None

    @property
    def docs(self) -> int:
        """The number of documents."""
        return len(self.offsets) - 1

    def document(self, number: int) -> npt.NDArray[Any]:
        """The ids of one document, its end-of-text token included."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]


@dataclass(frozen=True)
class TokenFiles:
    """A complete cache entry.

    `meta` holds: dataset, eval_dataset, tokenizer, text_column, vocab_size, eos_id, dtype, train_docs, train_tokens,
    train_text_bytes, eval_docs, eval_tokens, eval_text_bytes (null for shards of ids), seconds, and the files' sizes.
    """

    train: Tokens
    eval: Tokens
    meta: dict[str, Any]
    tokenizer_path: Path | None
    fingerprint: str


def prepare(arguments: DataArguments, progress: IO[str] | None) -> TokenFiles:
    """The tokens of `--dataset`, from the cache or made now; any number of processes may call it at once.

    Args:
        progress: where a progress bar is drawn while they are made, here or elsewhere.

    Raises:
        UserError: something named in the arguments cannot be read, has too few documents, or cannot be cached.
    """
    train = _open(arguments.dataset, arguments.text_column)
    held_out = _open(arguments.eval_dataset, arguments.text_column) if arguments.eval_dataset else None
    if arguments.eval_docs is not None and arguments.eval_docs < 1:
        raise UserError(f"--eval_docs {arguments.eval_docs}: at least 1 document is needed to evaluate")
    encoder = load_encoder(arguments.tokenizer) if arguments.tokenizer else None
    if encoder is None and held_out is not None and isinstance(train, Corpus) != isinstance(held_out, Corpus):
        raise UserError(f"--eval_dataset {held_out.name}: token ids on one side, text on the other; give --tokenizer")
    made_from = {
        "format": FORMAT,
        "train": train.fingerprint(),
        "eval": held_out.fingerprint() if held_out else None,
        "eval_docs": arguments.eval_docs,
        "text_column": arguments.text_column,
        "tokenizer": encoder.fingerprint() if encoder else TRAINED_FINGERPRINT if isinstance(train, Corpus) else None,
    }
    fingerprint = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    entry = cache_folder(arguments) / fingerprint[:32]
    maker = _Maker(arguments, train, held_out, encoder)
    make_once(entry, maker.make, lambda folder: _meta(folder) is not None, progress)
    meta = _meta(entry)
    if meta is None:
        raise UserError(f"{entry}: removed by another process just now; start again")
    tokenizer = entry / "tokenizer"
    return TokenFiles(
        train=_map(entry, "train", arguments.dataset, meta),
        eval=_map(entry, "eval", arguments.eval_dataset or arguments.dataset, meta),
        meta={**meta, "dataset": arguments.dataset, "eval_dataset": arguments.eval_dataset},
        tokenizer_path=tokenizer if tokenizer.is_dir() else None,
        fingerprint=fingerprint,
    )


def cache_folder(arguments: DataArguments) -> Path:
    """`--cache_dir`, else `$LM_SCALE_CACHE`, else `lm_scale` in the user's cache folder."""
    given = arguments.cache_dir or os.environ.get("LM_SCALE_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{user}/lm_scale").expanduser().absolute()


@dataclass
class _Maker:
    """Makes one entry: counts, trains the tokenizer where none is given, encodes both splits."""

    arguments: DataArguments
    train: Source
    held_out: Source | None
    encoder: Encoder | None

    def make(self, folder: Path, status: Status) -> None:
        """Fill `folder`; see the docstring of this file."""
        started = time.monotonic()
        status.doing = "counting documents"
        eval_docs = self._eval_docs()
        first_train = 0 if self.held_out else eval_docs
        encoder = self.encoder
        if encoder is None and isinstance(self.train, Corpus):
            status.doing = "training the tokenizer"
            encoder = train_encoder(following(self.train, first_train, None, status))
        if encoder is not None:
            encoder.save(folder / "tokenizer")
        vocab_size = (
            encoder.vocab_size
            if encoder
            else 1
            + max(
                source.largest_id() for source in (self.train, self.held_out) if isinstance(source, PretokenizedCorpus)
            )
        )
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        counts: dict[str, Any] = {}
        for split, source, first, last in (
            ("eval", self.held_out or self.train, 0, eval_docs),
            ("train", self.train, first_train, None),
        ):
            status.doing, status.share = f"tokenizing ({split})", 0.0
            documents = encoded(source, first, last, encoder, split == "eval", status)
            written = write_split(folder, split, documents, dtype, vocab_size)
            counts |= {f"{split}_{what}": number for what, number in written.items()}
            status.share = 1.0
            if counts[f"{split}_tokens"] < 2:
                raise UserError(f"--dataset {source.name}: too little text in the {split} split for one label")
        meta = {
            "tokenizer": encoder.name if encoder else None,
            "text_column": self.arguments.text_column,
            "vocab_size": vocab_size,
            "eos_id": encoder.eos_id if encoder else None,
            "dtype": dtype,
            **counts,
            "seconds": time.monotonic() - started,
            "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    def _eval_docs(self) -> int | None:
        """How many documents evaluation takes from the start of its source; None for all of them."""
        wanted = self.arguments.eval_docs
        if self.held_out is not None:
            for source in (self.train, self.held_out):
                if source.count(1) == 0:
                    raise UserError(f"--dataset {source.name}: no text in it")
            return wanted
        name = f"--dataset {self.train.name}"
        documents = self.train.count(wanted + 1 if wanted else EVAL_DOCS * EVAL_ONE_IN)
        if documents == 0:
            raise UserError(f"{name}: no text in it")
        taken = wanted or max(1, min(EVAL_DOCS, documents // EVAL_ONE_IN))
        if taken >= documents:
            raise UserError(
                f"{name}: too few documents: {documents}; holding out {taken} for evaluation leaves none to train on; "
                "give more text, a smaller --eval_docs, or --eval_dataset"
            )
        return taken


def _open(dataset: str, text_column: str) -> Source:
    return open_pretokenized(dataset) or open_corpus(dataset, text_column)


def _meta(entry: Path) -> dict[str, Any] | None:
    """The entry's meta.json; None where the entry is absent or lacks a file, or part of one."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        whole = all((entry / name).stat().st_size == size for name, size in meta["files"].items())
    except (OSError, ValueError):
        return None
    return dict(meta) if whole else None


def _map(entry: Path, split: str, name: str, meta: dict[str, Any]) -> Tokens:
    def array(what: str, dtype: str) -> Any:
        file = entry / f"{split}.{what}"
        return np.memmap(file, dtype=dtype, mode="r") if file.name in meta["files"] else None

    return Tokens(
        name=name,
        ids=array("ids", meta["dtype"]),
        offsets=array("offsets", "int64"),
        labelled=array("labelled", "uint8"),
        bytes=array("bytes", "uint32"),
        eos_id=meta["eos_id"],
    )
