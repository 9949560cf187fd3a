"""How a run ended, from consoles of real runs that were ended in a known way."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaged_logs import untrue

from lm_scale.report.ingest import console, ending, find, trainer_log
from lm_scale.report.ingest.console import Console, Segment

SAMPLES = Path(__file__).parent.parent / "samples/endings"
ENDED = {
    "boom": ("crashed", "RuntimeError: boom at a step"),
    "cpu_oom": ("oom", "DefaultCPUAllocator: can't allocate memory"),
    "exit": ("crashed", "a process ended with return code 3"),
    "kill": ("crashed", "a process ended with return code -9"),
    "terminate": ("interrupted", "a process ended with return code -15"),
    "interrupt": ("interrupted", "KeyboardInterrupt"),
    "sigint": ("interrupted", "KeyboardInterrupt"),
    "sigterm": ("interrupted", ""),  # each launcher has its own words
}
LOGS = sorted(SAMPLES.glob("*.log"))


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
def test_a_run_under_a_launcher_ended_as_it_was_ended(log: Path) -> None:
    launcher, _, how = log.stem.partition("_")
    (reading,) = find.find([log]).readings
    row = reading.row
    status, message = ENDED[how]
    assert row.status == status
    assert message in str(row.last_error)
    assert row.engine == ("deepspeed" if launcher == "deepspeed" else "torch")
    if launcher != "single" and not how.startswith("sig"):
        assert row.steps == 21  # rank 0 had done it when rank 1 fell
        assert row.samples_seen == 21 * 16


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
def test_a_damaged_log_says_no_other_ending(log: Path, tmp_path: Path) -> None:
    assert untrue(log, tmp_path, trainer_log.recognises, trainer_log.read, cases=24, rounding=2e-3) == []


def test_a_return_code_that_the_end_of_the_file_cuts_is_not_believed(tmp_path: Path) -> None:
    whole = next(log for log in LOGS if log.stem == "deepspeed_terminate").read_bytes().rstrip()
    assert whole.endswith(b"return code = -15")
    path = tmp_path / "cut.log"
    path.write_bytes(whole[:-1])
    assert trainer_log.read(console.read(path))[-1].row.status is None


def ended(*lines: str) -> tuple[str | None, str]:
    failure = ending.failure(
        Console(Path("log"), [Segment(line, number, ended=True) for number, line in enumerate(lines)])
    )
    assert failure is not None
    return failure.status, failure.message


def test_what_the_launcher_does_to_the_other_ranks_is_no_interruption() -> None:
    killing = "[2026-01-01 10:00:00,000] [INFO] [launch.py:253:sigkill_handler] Killing subprocess 77"
    assert ended(killing) == (None, killing)
    said = "[2026-01-01 10:00:00,000] [ERROR] [launch.py:259:sigkill_handler] ['python'] exits with return code = {}"
    assert ended(killing, said.format(1)) == (None, "a process ended with return code 1")  # of any exception, lost here
    assert ended(killing, said.format(-11))[0] == "crashed"
    assert ended(killing, said.format(-15))[0] == "interrupted"
    got = "[2026-01-01 10:00:00,000] [INFO] [launch.py:262:sigkill_handler] Main process received SIGTERM, exiting"
    assert ended(killing, got)[0] == "interrupted"


def test_the_words_of_schedulers_and_other_launchers() -> None:
    assert ended("slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED AT 2026-01-01T10:00:00 DUE TO TIME LIMIT ***")[
        0
    ] == ("interrupted")
    assert ended("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.")[0] == "oom"
    assert ended("srun: error: node1: task 3: Exited with exit code 2")[0] == "crashed"
    assert ended("subprocess.CalledProcessError: Command '['python']' died with <Signals.SIGKILL: 9>.")[0] == "crashed"
    assert ended("subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.")[0] is None


def test_of_an_exception_and_a_hang_the_first_is_the_cause() -> None:
    trace = ["[rank1]: Traceback (most recent call last):", '[rank1]:   File "a.py", line 3, in <module>']
    error = "[rank1]: ValueError: bad batch"
    hung = "[rank0]:[E1124] [PG ID 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    assert ended(*trace, error, hung)[0] == "crashed"
    assert ended(hung, *trace, error)[0] == "hung"


def test_a_traceback_right_behind_a_bar_belongs_to_its_rank(tmp_path: Path) -> None:
    bar = " 40%|####      | 21/52 [00:02<00:04,  7.34it/s]"
    lines = [f"{bar}[rank1]: Traceback (most recent call last):", '[rank1]:   File "a.py", line 3, in f']
    assert ended(*lines, "[rank1]: RuntimeError: boom") == ("crashed", "RuntimeError: boom")
    (tmp_path / "log").write_text("\n".join(lines), encoding="utf-8")
    failure = ending.failure(console.read(tmp_path / "log"))
    assert failure is not None
    assert failure.status is None
