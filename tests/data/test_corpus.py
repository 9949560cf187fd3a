"""What `--dataset` names is read as the documents that its files hold, and what cannot be read is one clear line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_scale.arguments import UserError
from lm_scale.data.corpus import open_corpus
from lm_scale.data.formats import LONGEST_DOCUMENT


def documents(dataset: object, text_column: str = "text") -> list[str]:
    return list(open_corpus(str(dataset), text_column).documents())


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"id": 1, "body": text}) + "\n" for text in texts)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "jsonl": lambda path, texts: (path / "a.jsonl").write_text(lines(texts)),
    "jsonl.gz": lambda path, texts: (path / "a.jsonl.gz").write_bytes(gzip.compress(lines(texts).encode())),
    "parquet": lambda path, texts: pq.write_table(pa.table({"id": [1] * 300, "body": texts}), path / "a.parquet", 70),
    "txt with markers": lambda path, texts: (path / "a.txt").write_text("\n<|endoftext|>\n".join(texts)),
    "txt with blank lines": lambda path, texts: (path / "a.txt").write_text("\n\n".join(texts)),
    "a txt a document": lambda path, texts: [
        (path / f"{number:03}.txt").write_text(text) for number, text in enumerate(texts)
    ],
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_back_its_documents(kind: str, tmp_path: Path, texts: list[str]) -> None:
    WRITERS[kind](tmp_path, texts)
    assert documents(tmp_path, "body") == texts
    assert documents(f"{tmp_path}/*", "body") == texts
    assert open_corpus(str(tmp_path), "body").count() == 300


def test_a_folder_may_mix_kinds_and_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n')
    (tmp_path / "a.txt").write_text("first\n\nstill first\n")
    (tmp_path / "deeper" / "c.txt").write_text("third")
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.txt").write_text("no data")
    assert documents(tmp_path) == ["first\n\nstill first", "second", "third"]


def test_documents_without_text_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": null}\n{"text": " \\n"}\n{"text": "x"}\n')
    assert documents(tmp_path) == ["x"]


def test_half_a_surrogate_pair_becomes_text_that_a_tokenizer_takes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b \\ud83d\\ude42"}\n')
    assert documents(tmp_path) == ["a? b 🙂"]


def test_a_marker_is_found_wherever_reading_happens_to_stop(tmp_path: Path) -> None:
    for filler in range(2**20 - 14, 2**20 + 2):
        (tmp_path / "a.txt").write_text("x" * filler + "<|endoftext|>" + "y")
        assert [len(document) for document in documents(tmp_path)] == [filler, 1]


def test_a_long_document_is_cut_at_line_ends_and_loses_nothing_else(tmp_path: Path) -> None:
    line = "0123456789" * 10
    (tmp_path / "a.txt").write_text("\n".join([line] * 130_000))
    (tmp_path / "b.txt").write_text("z")
    parts = documents(tmp_path)
    assert parts.pop() == "z"
    assert len(parts) == 4  # 13.1 million characters
    assert all(len(part) <= LONGEST_DOCUMENT for part in parts)
    assert [row for part in parts for row in part.split("\n")] == [line] * 130_000


def test_a_line_that_never_ends_is_cut_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * (2 * LONGEST_DOCUMENT + 5))
    assert [len(part) for part in documents(tmp_path)] == [LONGEST_DOCUMENT, LONGEST_DOCUMENT, 5]


def test_builtin_python_is_the_library_without_tests_plus_topics() -> None:
    found = documents("builtin:python")
    library = Path(sysconfig.get_path("stdlib"))
    assert (library / "json" / "decoder.py").read_text() in found
    assert any("assert_stmt ::=" in text for text in found)  # a documentation topic
    tests = [path.read_bytes().decode("utf-8", "replace") for path in library.glob("test/test_json/*.py")]
    assert not set(found) & {text for text in tests if text.strip()}
    assert 8e6 < sum(map(len, found)) < 20e6
    assert str(library) not in "".join(found)


def test_builtin_python_is_the_same_wherever_python_is_installed(tmp_path: Path) -> None:
    source = "import sysconfig; sysconfig.get_path = lambda name: {!r}\n"
    source += (
        "from lm_scale.data.corpus import open_corpus; import hashlib; corpus = open_corpus('builtin:python', '')\n"
    )
    source += "print(corpus.fingerprint(), hashlib.sha256('|'.join(corpus.documents()).encode()).hexdigest())"
    library = sysconfig.get_path("stdlib")
    moved = tmp_path / "moved"
    for name in ("json", "email"):
        shutil.copytree(f"{library}/{name}", moved / name)
        shutil.copytree(moved / name, tmp_path / "again" / name, copy_function=shutil.copyfile)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", source.format(str(tmp_path / name))], capture_output=True, text=True, check=True
        ).stdout
        for name in ("moved", "again")
    ]
    assert len(outputs[0]) > 100
    assert outputs[0] == outputs[1]


def test_the_fingerprint_follows_a_changed_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = open_corpus(str(tmp_path), "text").fingerprint()
    assert before == open_corpus(str(tmp_path), "text").fingerprint()
    file.write_text("two!")
    assert open_corpus(str(tmp_path), "text").fingerprint() != before


def _broken(tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "unknown built-in": (lambda path: "builtin:perl", r"builtin:perl: the only built-in text is builtin:python"),
    "no such file": (lambda path: f"{path}/no.txt", r"no\.txt: no such file or folder"),
    "no such folder": (lambda path: f"{path}/no", r"no: no such file or folder"),
    "glob without match": (lambda path: f"{path}/*.jsonl", r"\*\.jsonl: no .* file matches this pattern"),
    "empty folder": (lambda path: str(path), r"no \.txt, \.jsonl, \.jsonl\.gz or \.parquet file in this folder"),
    "other kind": (lambda path: _broken(path, "a.pdf", b"%PDF"), r"a\.pdf: not a kind of file that can be read"),
    "malformed line": (
        lambda path: _broken(path, "a.jsonl", b'{"text": "x"}\n{"text" "y"}\n'),
        r"a\.jsonl:2:9: not valid JSON: Expecting ':' delimiter",
    ),
    "no object": (lambda path: _broken(path, "a.jsonl", b'["x"]\n'), r"a\.jsonl:1: a line must be a JSON object"),
    "missing key": (
        lambda path: _broken(path, "a.jsonl", b'{"title": "x", "content": "y"}\n'),
        r"a\.jsonl:1: no column text; give --text_column one of content, title",
    ),
    "no string": (lambda path: _broken(path, "a.jsonl", b'{"text": 3}\n'), r"a\.jsonl:1: column text holds int"),
    "not gzip": (lambda path: _broken(path, "a.jsonl.gz", b'{"text": "x"}\n'), r"a\.jsonl\.gz: damaged gzip"),
    "cut gzip": (
        lambda path: _broken(path, "a.jsonl.gz", gzip.compress(lines(["x" * 99]).encode())[:-12]),
        r"a\.jsonl\.gz: damaged gzip",
    ),
    "no parquet": (lambda path: _broken(path, "a.parquet", b"PAR1 but not really"), r"a\.parquet: cannot be read"),
    "not UTF-8": (lambda path: _broken(path, "a.txt", "naïve".encode("latin-1")), r"a\.txt: not UTF-8 text"),
    "not UTF-8 JSON": (lambda path: _broken(path, "a.jsonl", b'{"text": "na\xefve"}\n'), r"a\.jsonl:1: not UTF-8 text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_one_line_that_names_the_place(case: str, tmp_path: Path) -> None:
    name, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as raised:
        documents(name(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_parquet_without_the_text_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["x"], "size": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: no column text; give --text_column one of size, title"):
        documents(tmp_path)
    with pytest.raises(UserError, match=r"a\.parquet: column size holds int64, not text"):
        documents(tmp_path, "size")


def test_a_parquet_damaged_inside_is_named(tmp_path: Path, texts: list[str]) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), file, compression="zstd", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[40:200] = b"\xff" * 160
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: damaged parquet"):
        documents(tmp_path)


def test_a_data_set_of_the_datasets_library_gives_its_rows(tmp_path: Path, texts: list[str]) -> None:
    """The library loads a folder by the same call as a hub name, which needs a network."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(lines(texts))
    source = (
        "import json; from lm_scale.data.hub import HubCorpus; from lm_scale.arguments import UserError\n"
        "corpus = HubCorpus('set', 'body')\n"
        "print(json.dumps([list(corpus.documents()), corpus.count(7), corpus.read_share > 0, corpus.fingerprint()]))\n"
        "try: HubCorpus('set', 'text')\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", source]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    rows, error = first.splitlines()
    assert json.loads(rows)[:3] == [texts, 7, True]
    assert error == "--dataset set: no column text; give --text_column one of body, id"


def test_a_hub_name_without_a_hub_is_one_line_at_once(tmp_path: Path) -> None:
    source = (
        "from lm_scale.data.corpus import open_corpus; from lm_scale.arguments import UserError\n"
        "try: open_corpus('nobody/nothing:config', 'text')\n"
        "except UserError as error: print(error)"
    )
    environment = {
        "PATH": "",
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": ":".join(sys.path),
    }
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment, timeout=60)
    assert (
        "nobody/nothing:config: no file or folder of this name, and not loaded from the Hugging Face hub"
        in result.stdout
    )
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
