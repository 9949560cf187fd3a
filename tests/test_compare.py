"""`compare` with the real launcher and the real command: failures are rows, and one mistake for all stops it early."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launches import CONFIGS, TINY

from lm_scale.records import read


def compare(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_scale.compare", *words, "--output_dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A good strategy, one whose JSON has a typo, and one that diverges."""
    folder = tmp_path_factory.mktemp("mixed")
    document = json.loads((CONFIGS / "zero1.json").read_text())
    (folder / "typo.json").write_text(json.dumps({**document, "gradient_cliping": 1.0}))
    document["optimizer"]["params"]["lr"] = 1e30
    (folder / "wild.json").write_text(json.dumps({**document, "gradient_clipping": 0.0}))
    paths = [str(CONFIGS / "zero1.json"), str(folder / "typo.json"), str(folder / "wild.json")]
    words = [
        *(word for word in TINY if word not in ("--learning_rate", "1e-3")),
        "--max_steps",
        "6",
        "--no_save",
        "--sample_tokens",
        "0",
        "--warmup_steps",
        "0",
    ]
    return compare(*paths, *words, "--run_name", "mixed", folder=folder), folder / "mixed"


def test_every_outcome_is_a_row(mixed: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, folder = mixed
    assert done.returncode == 1
    statuses = {path.parent.name: read(path.parent).status for path in folder.glob("*/run.json")}
    assert statuses == {"zero1": "completed", "typo": "rejected", "wild": "diverged"}
    assert all(word in done.stdout for word in ("zero1", "typo", "wild", "rejected", "diverged"))


def test_a_failure_says_why(mixed: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = mixed
    assert "did you mean gradient_clipping?" in (read(folder / "typo").last_error or "")
    assert re.search(r"(loss|grad_norm) (nan|inf) at step \d", read(folder / "wild").last_error or "")
    rows = json.loads((folder / "table.json").read_text())
    assert [row["status"] for row in rows] == ["completed", "rejected", "diverged"]
    assert rows[1]["tokens_per_s"] is None


def test_a_json_that_the_lint_refuses_is_a_row_and_starts_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text('{"gradient_cliping": 1.0}')
    done = compare(str(tmp_path / "one.json"), str(tmp_path / "two.json"), "--run_name", "both", folder=tmp_path)
    assert done.returncode == 1
    folder = tmp_path / "both"
    assert [row["status"] for row in json.loads((folder / "table.json").read_text())] == ["rejected", "rejected"]
    assert "did you mean gradient_clipping?" in (read(folder / "two").last_error or "")
    assert not list(folder.glob("*.launcher.log"))


def test_a_mistake_that_all_runs_share_ends_it_at_once(tmp_path: Path) -> None:
    done = compare(str(CONFIGS / "zero1.json"), str(CONFIGS / "zero2.json"), "--dataset", "none.txt", folder=tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "none.txt" in line]
    assert "Traceback" not in done.stderr


def test_a_missing_json_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = compare(str(CONFIGS / "zero1.json"), "nowhere.json", folder=tmp_path)
    assert done.returncode == 2
    assert "nowhere.json" in done.stderr
    assert not list(tmp_path.iterdir())


def test_sigterm_ends_every_process_and_keeps_the_record(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_scale.compare", str(CONFIGS / "zero1.json"), *TINY, "--max_steps", "100000"]
    command += ["--output_dir", str(tmp_path), "--run_name", "ended"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "ended" / "zero1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count('"step"') > 3):
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert read(tmp_path / "ended" / "zero1").status == "interrupted"
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and mentions(pid, str(tmp_path))]


def mentions(pid: str, word: str) -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
