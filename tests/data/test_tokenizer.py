"""Tokenizers: the trained one is reproducible and ships with a model; a user's own loads from every usual form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lm_scale.arguments import UserError
from lm_scale.data.tokenizer import load_encoder, train_encoder


def test_the_trained_tokenizer_loads_in_transformers_and_gives_the_same_ids(tmp_path: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer

    encoder = train_encoder(texts)
    encoder.save(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    ours = encoder.encode(texts[:20])
    assert [loaded(text)["input_ids"] for text in texts[:20]] == [ids.tolist() for ids in ours]
    assert loaded.decode(ours[3].tolist()) == texts[3]
    assert (loaded.eos_token, loaded.eos_token_id, len(loaded)) == ("<|endoftext|>", encoder.eos_id, encoder.vocab_size)


def test_training_is_the_same_in_every_process(tmp_path: Path, jsonl: Path) -> None:
    source = (
        "import sys; from lm_scale.data.corpus import open_corpus; from lm_scale.data.tokenizer import train_encoder\n"
        "print(train_encoder(open_corpus(sys.argv[1], 'text').documents()).fingerprint())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", source, str(jsonl)],
            env={**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, parallel in (("1", "true"), ("2", "false"))
    }
    assert len(prints) == 1


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    encoder = train_encoder(["abab", "abab"])
    assert 257 < encoder.vocab_size < 300  # 256 bytes, the end of text, and the few merges there are
    assert encoder.encode(["ab"])[0].size == 1


def test_covered_bytes_add_up_to_the_text(texts: list[str]) -> None:
    encoder = train_encoder(["ascii only, so that other characters fall into bytes"])
    for text, (ids, covered) in zip(texts, encoder.encode_with_bytes(texts), strict=True):
        assert len(ids) == len(covered)
        assert covered.sum() == len(text.encode())


def test_covered_bytes_add_up_where_offsets_leave_out_spaces_and_accents(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "cafe": 2}, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "  café  naïve \t 日本 \n"
    ids, covered = load_encoder(str(tmp_path / "tokenizer.json")).encode_with_bytes([text])[0]
    assert ids.tolist() == [2, 0, 0]
    assert covered.tolist() == [len("  café".encode()), len("  naïve".encode()), len(" \t 日本 \n".encode())]


def test_a_directory_a_file_and_a_bare_directory_are_the_same_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    shutil.copy(tokenizer / "tokenizer.json", tmp_path)
    encoders = [load_encoder(str(path)) for path in (tokenizer, tmp_path, tmp_path / "tokenizer.json")]
    assert len({encoder.fingerprint() for encoder in encoders}) == 1
    assert {encoder.eos_id for encoder in encoders} == {0}


def test_special_tokens_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", 1)])
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    encoder = load_encoder(str(tmp_path))
    assert [ids.tolist() for ids in encoder.encode(["a a a a a a", "a"])] == [[2] * 6, [2]]
    assert np.array_equal(encoder.encode_with_bytes(["a a a a a a"])[0][0], [2] * 6)


def test_a_tokenizer_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(UserError, match="cannot be loaded") as raised:
            load_encoder(str(name))
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"/no/such: no such file or folder"):
        load_encoder("/no/such")


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_encoder(str(tmp_path))


def test_an_end_token_named_in_the_config_wins(tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "copy")
    config = tmp_path / "copy" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "!"}))
    encoder = load_encoder(str(tmp_path / "copy"))
    assert encoder.eos_id == encoder.encode(["!"])[0][0]
