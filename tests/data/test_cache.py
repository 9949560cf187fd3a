"""An entry is made by one process, whatever is killed, full or slow, and nobody ever reads half of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm_scale.arguments import DataArguments, UserError
from lm_scale.data import cache
from lm_scale.data.cache import Status, make_once
from lm_scale.data.tokens import prepare

MAKE = """
import sys, time
from pathlib import Path
from lm_scale.arguments import UserError
from lm_scale.data.cache import make_once

seconds, what = float(sys.argv[2]), sys.argv[3]

def make(folder, status):
    print("making", flush=True)
    (folder / "data").write_text("half")
    time.sleep(seconds)
    if what == "mistake":
        raise UserError("line 7: malformed")
    (folder / "data").write_text("whole")

try:
    make_once(Path(sys.argv[1]), make, lambda entry: (entry / "data").exists(), None)
    print((Path(sys.argv[1]) / "data").read_text())
except UserError as error:
    print("error:", error)
"""


def start(entry: Path, seconds: float, what: str = "data") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, str(entry), str(seconds), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Path, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not list(condition.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def whole(entry: Path) -> bool:
    return (entry / "data").exists()


def write_whole(folder: Path, status: Status) -> None:
    (folder / "data").write_text("whole")


def test_of_several_processes_one_makes_it_and_all_read_it(tmp_path: Path) -> None:
    outputs = [process.communicate()[0] for process in [start(tmp_path / "entry", 1.0) for _ in range(4)]]
    assert sorted(outputs) == ["making\nwhole\n"] + ["whole\n"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_after_a_kill_in_the_middle_the_next_process_starts_clean(tmp_path: Path) -> None:
    first = start(tmp_path / "entry", 60)
    wait_for(tmp_path, "entry.making-*/data")
    waiting = start(tmp_path / "entry", 0)
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert waiting.communicate(timeout=20)[0] == "making\nwhole\n"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_users_mistake_reaches_all_who_wait_without_being_repeated(tmp_path: Path) -> None:
    first = start(tmp_path / "entry", 3, "mistake")
    wait_for(tmp_path, "entry.making-*/data")
    others = [start(tmp_path / "entry", 60, "mistake") for _ in range(2)]
    assert first.communicate()[0] == "making\nerror: line 7: malformed\n"
    assert [other.communicate(timeout=20)[0] for other in others] == ["error: line 7: malformed\n"] * 2
    assert not (tmp_path / "entry").exists()
    make_once(tmp_path / "entry", write_whole, whole, None)  # the mistake is not remembered
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def foreign_lock(entry: Path) -> Path:
    """A lock as a process on another machine leaves it."""
    lock = entry.with_name("entry.lock")
    lock.mkdir()
    process = {"host": "elsewhere", "boot_id": "x", "pid": 1, "pid_started": 1, "pid_namespace": "x"}
    file = lock / "0123.json"
    file.write_text(json.dumps({"process": process, "status": {"doing": "tokenizing", "share": 0.5}}))
    return file


def test_a_silent_maker_elsewhere_is_waited_for_and_then_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "STALE_S", 1.5)
    beat = foreign_lock(tmp_path / "entry")
    alive_until = time.monotonic() + 3

    def live() -> None:
        while time.monotonic() < alive_until:
            os.utime(beat)
            time.sleep(0.2)

    threading.Thread(target=live).start()
    make_once(tmp_path / "entry", write_whole, whole, None)
    assert time.monotonic() > alive_until
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_of_two_takers_of_a_stale_lock_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STALE_S", 0.5)
    foreign_lock(tmp_path / "entry")
    made = []

    def make(folder: Path, status: Status) -> None:
        made.append(folder)
        time.sleep(0.4)  # the others take their turn at the old lock meanwhile
        write_whole(folder, status)

    takers = [threading.Thread(target=make_once, args=(tmp_path / "entry", make, whole, None)) for _ in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert len(made) == 1
    assert whole(tmp_path / "entry")


def test_a_late_taker_cannot_take_the_lock_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STALE_S", 0.0)
    foreign_lock(tmp_path / "entry")
    early, late = cache._Lock(tmp_path / "entry"), cache._Lock(tmp_path / "entry")
    assert early.watch()
    assert late.watch()
    early.take_over_if_stale()
    assert early.claim()
    late.take_over_if_stale()  # it saw the old holder, and comes after the lock has a new one
    assert early.is_mine()
    assert not late.claim()


def test_a_waiting_process_shows_how_far_the_maker_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STALE_S", 0.5)
    foreign_lock(tmp_path / "entry")
    with open(tmp_path / "bar", "w+") as stream:
        make_once(tmp_path / "entry", write_whole, whole, stream)
        stream.seek(0)
        assert "tokenizing:  50%" in stream.read()


@contextlib.contextmanager
def tiny_disk(path: Path, kilobytes: int) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("own_tokenizer", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    own_tokenizer: bool, tmp_path: Path, tokenizer: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"document {number} of a few words" for number in range(20_000)))
    arguments = DataArguments(
        dataset=str(corpus),
        cache_dir=str(tmp_path / "disk"),
        tokenizer=str(tokenizer) if own_tokenizer else None,
    )
    with tiny_disk(tmp_path / "disk", 100):
        with pytest.raises(UserError, match=r"disk: tokens cannot be cached there: No space left on device") as raised:
            prepare(arguments, None)
        assert "\n" not in str(raised.value)
        assert list((tmp_path / "disk").iterdir()) == []
    arguments.cache_dir = str(tmp_path / "elsewhere")
    assert prepare(arguments, None).meta["train_docs"] == 19_800


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path: Path, jsonl: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache: tokens cannot be cached there: Not a directory; .*--cache_dir"):
        prepare(DataArguments(dataset=str(jsonl), cache_dir=str(tmp_path / "file" / "cache")), None)


def test_killing_the_real_maker_in_the_middle_leaves_a_next_run_that_works(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"document {number} " + "of several words " * 40 for number in range(5_000)))
    source = (
        "import sys; from lm_scale.arguments import DataArguments; from lm_scale.data.tokens import prepare\n"
        "print(prepare(DataArguments(dataset=sys.argv[1], cache_dir=sys.argv[2]), None).meta['train_tokens'])"
    )
    command = [sys.executable, "-c", source, str(corpus)]
    with subprocess.Popen([*command, str(tmp_path / "cache")]) as first:
        wait_for(tmp_path / "cache", "*.making-*/train.ids")
        first.send_signal(signal.SIGKILL)
    assert not list((tmp_path / "cache").glob("*/meta.json"))
    after_kill = subprocess.check_output([*command, str(tmp_path / "cache")])
    assert after_kill == subprocess.check_output([*command, str(tmp_path / "undisturbed")])
    assert len(list((tmp_path / "cache").iterdir())) == 1
