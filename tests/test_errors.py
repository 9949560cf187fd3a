"""A mistake of the user's is one line on stderr, once, and exit status 2: the real command, nothing left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launches import CONFIGS, TINY, Launch, has_libaio

ZERO1 = str(CONFIGS / "zero1.json")


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The error line holds `words`; nothing else of ours is on stderr."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_step", "3"], ["--max_step: unknown argument; did you mean --max_steps?"]),
        ([], ["--ds_config missing"]),
        (["--ds_config", "nowhere.json"], ["nowhere.json: No such file"]),
        (["--ds_config", ZERO1, "--model", "qwen3-1bb"], ["--model qwen3-1bb", "did you mean qwen3-1b?"]),
        (["--ds_config", ZERO1, "--seq_len", "99999"], ["--seq_len 99999", "positions"]),
        (["--ds_config", ZERO1, "--dataset", "nowhere.txt"], ["nowhere.txt"]),
        (["--ds_config", ZERO1, "--budget", "soon"], ["--budget soon: not a duration"]),
        (["--ds_config", ZERO1, "--run_name", "a/b"], ["--run_name a/b"]),
        (["--ds_config", ZERO1, "--resume", "nowhere"], ["--resume nowhere"]),
        (["--ds_config", ZERO1, "--resume", "auto"], ["needs --run_name"]),
        (["--ds_config", ZERO1, "--train_batch_size", "7", "--per_device_train_batch_size", "2"], ["use 6 or 8"]),
        (["--ds_config", ZERO1, "--override", "zero_optimization.stagee=2"], ["did you mean zero_optimization.stage?"]),
    ],
)
def test_a_mistake_in_the_arguments(pretrain: Launch, tmp_path: Path, words: list[str], message: list[str]) -> None:
    refused(pretrain(*words, "--output_dir", str(tmp_path / "out")), *message)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 1},\n "gradient_clipping": }', [":2:23: not valid JSON"]),
        (json.dumps({"gradient_cliping": 1.0}), ["gradient_cliping: unknown key", "did you mean gradient_clipping?"]),
        (
            json.dumps({"train_micro_batch_size_per_gpu": 3, "train_batch_size": 4}),
            ["train_batch_size: 4 is no multiple of", "use train_batch_size 3 or 6"],
        ),
    ],
)
def test_a_mistake_in_the_json(pretrain: Launch, tmp_path: Path, text: str, message: list[str]) -> None:
    (tmp_path / "mine.json").write_text(text)
    refused(pretrain("--ds_config", str(tmp_path / "mine.json"), "--output_dir", str(tmp_path)), "mine.json", *message)


def test_a_json_and_an_argument_that_contradict_each_other(pretrain: Launch, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"train_micro_batch_size_per_gpu": 4}')
    done = pretrain("--ds_config", str(tmp_path / "mine.json"), "--per_device_train_batch_size", "2")
    refused(done, "train_micro_batch_size_per_gpu is 4", "--per_device_train_batch_size is 2")


def test_under_the_launcher_the_line_comes_once_and_no_rank_stays(pretrain: Launch, tmp_path: Path) -> None:
    done = pretrain(
        "--ds_config",
        ZERO1,
        "--dataset",
        str(tmp_path / "none.txt"),
        "--output_dir",
        str(tmp_path),
        ranks=2,
        launcher=True,
    )
    refused(done, "none.txt")
    assert not processes_with(str(tmp_path / "none.txt"))


def test_too_little_text_for_one_batch_is_said_by_one_rank(pretrain: Launch, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one line\n\nand another\n\nand a third\n")
    words = ("--dataset", str(tmp_path / "short.txt"), "--output_dir", str(tmp_path / "out"))
    refused(pretrain("--ds_config", ZERO1, *TINY, *words, ranks=2, launcher=True), "too few documents for one batch")
    assert not list((tmp_path / "out").glob("*"))


def test_an_empty_file_is_refused(pretrain: Launch, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    refused(pretrain("--ds_config", ZERO1, *TINY, "--dataset", str(tmp_path / "empty.txt")), "empty.txt")


def test_an_output_directory_that_cannot_be_made(pretrain: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(pretrain("--ds_config", ZERO1, "--output_dir", str(tmp_path / "file")), "--output_dir")


def test_a_run_name_that_is_taken(pretrain: Launch, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = pretrain("--ds_config", ZERO1, "--output_dir", str(tmp_path), "--run_name", "mine")
    refused(done, "--run_name mine", "exists")
    assert not list((tmp_path / "mine").iterdir())


def test_an_nvme_path_whose_parent_is_missing(pretrain: Launch, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "nvme"
    words = ("--override", f"zero_optimization.offload_optimizer.nvme_path={path}")
    done = pretrain("--ds_config", str(CONFIGS / "zero3_nvme.json"), *words, "--output_dir", str(tmp_path))
    refused(done, "nvme_path", str(path.parent), "does not exist")


@pytest.mark.skipif(has_libaio(), reason="libaio is installed here")
def test_a_missing_libaio_is_named_with_its_package(pretrain: Launch, tmp_path: Path) -> None:
    done = pretrain("--ds_config", str(CONFIGS / "zero3_nvme.json"), "--output_dir", str(tmp_path))
    refused(done, "libaio-dev")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {
            **os.environ,
            **where,
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "DS_ACCELERATOR": "cpu",
        }
        command = [
            sys.executable,
            "-m",
            "lm_scale.pretrain",
            "--ds_config",
            ZERO1,
            *TINY,
            "--output_dir",
            str(tmp_path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    refused(done, f"port {port}: in use", "--master_port")


def test_more_ranks_than_cores_is_a_warning(pretrain: Launch, tmp_path: Path) -> None:
    ranks = len(os.sched_getaffinity(0)) + 1
    words = ("--max_steps", "1", "--no_save", "--sample_tokens", "0", "--output_dir", str(tmp_path))
    done = pretrain("--ds_config", ZERO1, *TINY, *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"{ranks} ranks share {ranks - 1} CPU cores" in done.stderr


def processes_with(word: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in command and int(pid) != os.getpid():
            found.append(command)
    return found
