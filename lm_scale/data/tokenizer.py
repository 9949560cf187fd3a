"""Text to token ids: a tokenizer of the user's, or a byte-level BPE trained on the train split.

Both become an `Encoder`: documents in, ids out, and for evaluation text the UTF-8 bytes that each token covers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_scale.arguments import UserError
from lm_scale.data.formats import END_OF_TEXT

TRAINED_VOCABULARY = 8192
TRAINED_NAME = f"byte-level BPE of {TRAINED_VOCABULARY:,} tokens"
TRAINED_FINGERPRINT = f"byte-level-bpe-{TRAINED_VOCABULARY}-1"

_TRAINING_CHARACTERS = 128 * 2**20  # more text hardly moves 8,192 merges, but its word counts would fill the memory
_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")

Ids = npt.NDArray[np.uint32]


class Encoder:
    """A tokenizer ready to encode batches of documents; `eos_id` ends a document, ids are below `vocab_size`."""

    def __init__(self, name: str, eos_id: int, vocab_size: int, backend: Any = None, wrapper: Any = None) -> None:
        self.name = name
        self.eos_id = eos_id
        self.vocab_size = vocab_size
        self._backend = backend  # tokenizers.Tokenizer; None for a tokenizer in Python
        self._wrapper = wrapper  # transformers' object; None for the trained one

    @property
    def has_offsets(self) -> bool:
        """Whether `encode_with_bytes` can be asked for."""
        return self._backend is not None

    def fingerprint(self) -> str:
        """Of everything that the ids depend on."""
        if self._backend is not None:
            content = self._backend.to_str()
        else:
            import transformers

            vocabulary = sorted(self._wrapper.get_vocab().items())
            content = json.dumps([type(self._wrapper).__name__, transformers.__version__, vocabulary])
        return hashlib.sha256(f"{self.eos_id}\n{content}".encode()).hexdigest()

    def encode(self, documents: list[str]) -> list[Ids]:
        """The ids of each document, without an end-of-text token."""
        if self._backend is None:
            return [np.array(self._wrapper.encode(text, add_special_tokens=False), np.uint32) for text in documents]
        encodings = self._backend.encode_batch_fast(documents, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def encode_with_bytes(self, documents: list[str]) -> list[tuple[Ids, Ids]]:
        """The ids of each document and the UTF-8 bytes each covers; their sum is the document's length in bytes."""
        encodings = self._backend.encode_batch(documents, add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.uint32), _covered_bytes(text, encoding.offsets))
            for text, encoding in zip(documents, encodings, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write a directory that `transformers.AutoTokenizer.from_pretrained` loads.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        folder.mkdir()
        if self._wrapper is None:
            config = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END_OF_TEXT,
                "bos_token": END_OF_TEXT,
                "unk_token": END_OF_TEXT,
                "clean_up_tokenization_spaces": False,
            }
            (folder / "tokenizer.json").write_text(self._backend.to_str(), encoding="utf-8")
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            return
        try:
            self._wrapper.save_pretrained(folder)
        except Exception as error:  # the Rust library reports a full disk by a bare Exception
            if "os error" not in str(error):
                raise
            raise OSError(str(error)) from None


def train_encoder(documents: Iterable[str]) -> Encoder:
    """A byte-level BPE of at most 8,192 tokens, trained on the first 128 Mi characters alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED_VOCABULARY,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
    )
    backend.train_from_iterator(_first_characters(documents, _TRAINING_CHARACTERS), trainer)
    return Encoder(TRAINED_NAME, backend.get_vocab()[END_OF_TEXT], backend.get_vocab_size(), backend)


def load_encoder(name: str) -> Encoder:
    """The tokenizer of a hub name, a local directory or a `tokenizer.json`.

    Special tokens that stand in the text are encoded as such, as transformers does it.

    Raises:
        UserError: it cannot be loaded, or has no token that could end a text.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith(("/", ".", "~")) or name.endswith(".json") or name.count("/") > 1:
            raise UserError(f"--tokenizer {name}: no such file or folder")
        from lm_scale.data.hub import go_offline_if_unreachable

        go_offline_if_unreachable()
    try:
        wrapper = _load(path, name)
    except Exception as error:  # dozens of types, the Rust library's bare Exception among them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--tokenizer {name}: cannot be loaded: {reason}") from error
    vocabulary = wrapper.get_vocab()
    end = wrapper.eos_token_id
    if end is None:
        end = next((vocabulary[token] for token in _END_TOKENS if token in vocabulary), None)
    if end is None:
        raise UserError(f"--tokenizer {name}: has no end-of-text token; set eos_token in its tokenizer_config.json")
    backend = None
    if getattr(wrapper, "is_fast", False):
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(wrapper.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
    return Encoder(name, int(end), max(vocabulary.values()) + 1, backend, wrapper)


def _load(path: Path, name: str) -> Any:
    file = path / "tokenizer.json" if path.is_dir() else path
    described = path.is_dir() and any((path / other).is_file() for other in ("tokenizer_config.json", "config.json"))
    if file.is_file() and not described:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer.from_file(str(file))
        end = next((token for token in _END_TOKENS if backend.token_to_id(token) is not None), None)
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)  # type: ignore[no-untyped-call]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path) if path.exists() else name)


def _first_characters(documents: Iterable[str], limit: int) -> Iterator[str]:
    for text in documents:
        yield text
        limit -= len(text)
        if limit <= 0:
            return


def _covered_bytes(text: str, offsets: list[tuple[int, int]]) -> Ids:
    """UTF-8 bytes from the end of the token before to the end of each token; the last token covers the rest too.

    Offsets are in characters. They may leave out spaces, and the tokens inside one multi-byte character overlap, so
    that only the running maximum of the ends adds up to the text exactly.
    """
    if not offsets:
        return np.zeros(0, np.uint32)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    bytes_before = np.concatenate(([0], np.cumsum(widths)))
    ends = np.maximum.accumulate(np.array(offsets, np.int64)[:, 1])
    ends[-1] = len(text)
    return np.diff(bytes_before[ends], prepend=0).astype(np.uint32)
