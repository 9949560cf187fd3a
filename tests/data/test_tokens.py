"""The token cache holds exactly the text, split as promised, and says in one line why it could not be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from lm_scale.arguments import DataArguments, UserError
from lm_scale.data.tokens import TokenFiles, Tokens, prepare


def prepared(dataset: object, cache: Path, **arguments: Any) -> TokenFiles:
    return prepare(DataArguments(dataset=str(dataset), cache_dir=str(cache), **arguments), None)


def decoded(tokens: Tokens, files: TokenFiles) -> list[str]:
    """The documents, by transformers' own tokenizer; each must end with the end-of-text token."""
    tokenizer = AutoTokenizer.from_pretrained(str(files.tokenizer_path))
    documents = [tokens.document(number).tolist() for number in range(tokens.docs)]
    assert all(document[-1] == tokenizer.eos_token_id for document in documents)
    return [str(tokenizer.decode(document[:-1])) for document in documents]


def test_both_splits_together_are_the_corpus_in_its_order(jsonl: Path, texts: list[str], tmp_path: Path) -> None:
    files = prepared(jsonl, tmp_path / "cache")
    assert decoded(files.eval, files) == texts[:3]  # 1 % of 300
    assert decoded(files.train, files) == texts[3:]
    assert files.meta["eval_docs"] == 3
    assert files.meta["train_text_bytes"] == len("".join(texts[3:]).encode())
    assert files.train.ids.dtype == np.uint16


def test_the_trained_tokenizer_has_not_seen_the_evaluation_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    held_out = ["zyzzyva zyzzyva zyzzyva"] * 50
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out + ["plain words"] * 50))
    files = prepared(file, tmp_path / "cache", eval_docs=50)
    assert len(files.eval.document(0)) > len("zyzzyva zyzzyva zyzzyva") / 2
    assert len(files.train.document(0)) == 3  # two words and the end


def test_a_given_tokenizer_is_used_and_kept(jsonl: Path, texts: list[str], tokenizer: Path, tmp_path: Path) -> None:
    files = prepared(jsonl, tmp_path / "cache", tokenizer=str(tokenizer), eval_docs=10)
    expected = AutoTokenizer.from_pretrained(str(tokenizer))
    assert [files.eval.document(n).tolist()[:-1] for n in range(10)] == [expected(t)["input_ids"] for t in texts[:10]]
    assert decoded(files.train, files) == texts[10:]


def test_a_large_vocabulary_is_stored_whole(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(70_000)} | {"<|endoftext|>": 70_000}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("w1 w69999\n\nw65536 w2 w65535")
    files = prepared(tmp_path / "a.txt", tmp_path / "cache", tokenizer=str(tmp_path / "tokenizer.json"))
    assert files.eval.ids.tolist() == [1, 69999, 70_000]
    assert files.train.ids.tolist() == [65536, 2, 65535, 70_000]


def test_bytes_of_the_evaluation_tokens_add_up_to_each_document(jsonl: Path, texts: list[str], tmp_path: Path) -> None:
    files = prepared(jsonl, tmp_path / "cache", eval_docs=60)
    assert files.eval.bytes is not None
    sums = np.add.reduceat(files.eval.bytes, files.eval.offsets[:-1])
    assert sums.tolist() == [len(text.encode()) for text in texts[:60]]
    assert files.train.bytes is None


def test_a_tokenizer_without_offsets_gives_tokens_but_no_bytes(jsonl: Path, texts: list[str], tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    files = prepared(jsonl, tmp_path / "cache", tokenizer=str(tmp_path / "byt5"))
    assert files.eval.document(0).tolist() == [byte + 3 for byte in texts[0].encode()] + [1]
    assert files.eval.bytes is None
    assert files.meta["eval_text_bytes"] == len("".join(texts[:3]).encode())


def test_an_evaluation_text_of_its_own_leaves_all_documents_to_training(
    jsonl: Path, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("First other.\n\nSecond other.")
    files = prepared(jsonl, tmp_path / "cache", eval_dataset=str(tmp_path / "other.txt"))
    assert decoded(files.train, files) == texts
    assert decoded(files.eval, files) == ["First other.", "Second other."]


def test_a_second_call_reads_the_cache_and_a_changed_input_does_not(
    jsonl: Path, tokenizer: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = prepared(jsonl, cache)
    made = (cache / first.fingerprint[:32] / "meta.json").stat().st_mtime_ns
    assert prepared(jsonl, cache).fingerprint == first.fingerprint
    assert (cache / first.fingerprint[:32] / "meta.json").stat().st_mtime_ns == made
    others = [
        prepared(jsonl, cache, eval_docs=4).fingerprint,
        prepared(jsonl, cache, tokenizer=str(tokenizer)).fingerprint,
    ]
    jsonl.write_text(jsonl.read_text() + '{"text": "one more"}\n')
    others.append(prepared(jsonl, cache).fingerprint)
    assert len({first.fingerprint, *others}) == 4


def test_a_damaged_entry_is_made_anew(jsonl: Path, texts: list[str], tmp_path: Path) -> None:
    files = prepared(jsonl, tmp_path / "cache")
    ids = files.train.ids.tolist()
    os.truncate(tmp_path / "cache" / files.fingerprint[:32] / "train.ids", 100)
    assert prepared(jsonl, tmp_path / "cache").train.ids.tolist() == ids


def test_the_default_split_holds_out_at_most_5000(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for documents, expected in ((150, 1), (1000, 10), (600_000, 5000)):
        file.write_text("a\n\n" * documents)
        from lm_scale.data.corpus import open_corpus
        from lm_scale.data.tokens import _Maker

        maker = _Maker(DataArguments(), open_corpus(str(file), "text"), None, None)
        assert maker._eval_docs() == expected


def test_too_little_text_is_one_line(tmp_path: Path, jsonl: Path) -> None:
    file = tmp_path / "a.txt"
    cases: list[tuple[object, str, dict[str, Any], str]] = [
        (file, "", {}, r"a\.txt: no text in it"),
        (file, " \n\n \t\n", {}, r"a\.txt: no text in it"),
        (file, "one document", {}, r"too few documents: 1; holding out 1 for evaluation leaves none"),
        (file, "one\n\ntwo", {"eval_docs": 2}, r"too few documents: 2; holding out 2"),
        (jsonl, "", {"eval_dataset": str(file)}, r"a\.txt: no text in it"),
        (jsonl, "", {"eval_docs": 0}, r"--eval_docs 0: at least 1"),
    ]
    for dataset, content, arguments, message in cases:
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            prepared(dataset, tmp_path / "cache", **arguments)
        assert not list((tmp_path / "cache").glob("*/meta.json"))


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    source = (
        "import sys; from lm_scale.arguments import DataArguments; from lm_scale.data.tokens import prepare\n"
        "prepare(DataArguments(dataset=sys.argv[1], tokenizer=sys.argv[2], cache_dir=sys.argv[3]), None)\n"
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    block = "\n\n".join(" ".join(["abcdefghijklmnopqrst"] * 50) for _ in range(1000)) + "\n\n"  # 1 MB
    peaks = []
    for megabytes in (8, 40):
        file = tmp_path / f"{megabytes}.txt"
        with open(file, "w") as output:
            for _ in range(megabytes):
                output.write(block)
        arguments = [str(file), str(tmp_path / "tokenizer.json"), str(tmp_path / "cache")]
        peaks.append(float(subprocess.check_output([sys.executable, "-c", source, *arguments])))
    assert peaks[1] - peaks[0] < 16, peaks  # MB, for 32 MB more text
