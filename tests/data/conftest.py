"""Small corpora and a tokenizer for the tests of lm_scale/data/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_scale.data.tokenizer import train_encoder

TEXTS = [
    f"Document {number}: naïve café, Привет мир, 日本語のテキスト, 🙂🚀, and {'plain words ' * (number % 7)}end."
    for number in range(300)
]


@pytest.fixture
def texts() -> list[str]:
    """300 documents of one line, with characters of one to four UTF-8 bytes."""
    return list(TEXTS)


@pytest.fixture
def jsonl(tmp_path: Path, texts: list[str]) -> Path:
    """The documents as a .jsonl."""
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer directory, as a user would have one."""
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_encoder(TEXTS[:50]).save(folder)
    return folder
