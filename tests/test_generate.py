"""`generate` speaks from a run's weights, and says what is missing where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lm_scale.records import Run


def generate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_scale.generate", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_run_continues_a_prompt_the_same_way_for_the_same_seed(strategies: dict[str, Run]) -> None:
    run = str(strategies["zero3"].path)
    once, again = (generate(run, "--prompt", "def ", "--max_new_tokens", "12") for _ in range(2))
    assert once.returncode == 0, once.stderr
    assert once.stderr == ""
    assert once.stdout.startswith("def ")
    assert len(once.stdout) > len("def \n")
    assert once.stdout == again.stdout


def test_without_weights_it_says_so(strategies: dict[str, Run], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for words, message in (
        ([str(tmp_path), "--prompt", "x"], "no weights here"),
        ([str(tmp_path / "none"), "--prompt", "x"], "no such run directory"),
        ([str(strategies["zero3"].path)], "--prompt missing"),
    ):
        done = generate(*words)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
