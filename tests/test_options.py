"""What single options do to a run, each on one or two ranks of the real command."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launches import CONFIGS, ROOT, TINY, Launch, free_port

from lm_scale.records import Run, read

SHORT = ("--max_steps", "4", "--no_save", "--sample_tokens", "0")


def run(pretrain: Launch, folder: Path, name: str, *words: str, strategy: str = "zero1", ranks: int = 1) -> Run:
    given = ("--ds_config", str(CONFIGS / f"{strategy}.json"), "--output_dir", str(folder), "--run_name", name)
    done = pretrain(*given, *TINY, *SHORT, *words, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(folder / name)


def losses(run: Run) -> list[float]:
    return [step["loss"] for step in run.of("step")]


@pytest.fixture(scope="module")
def plain(pretrain: Launch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(pretrain, tmp_path_factory.mktemp("plain"), "plain")


def test_full_logits_and_recomputed_activations_move_no_number(pretrain: Launch, tmp_path: Path, plain: Run) -> None:
    other = run(pretrain, tmp_path, "other", "--loss", "full", "--gradient_checkpointing")
    assert (plain.header["numerics"]["loss"], other.header["numerics"]["loss"]) == ("chunked", "full")
    assert other.header["numerics"]["activation_checkpointing"] is True
    assert losses(other) == pytest.approx(losses(plain), rel=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiling_is_no_step_time(pretrain: Launch, tmp_path: Path, plain: Run) -> None:
    compiled = run(pretrain, tmp_path, "compiled", "--torch_compile")
    steps = compiled.of("step")
    assert steps[0]["compiled"]
    assert not steps[-1]["compiled"]
    assert steps[0]["compile_s"] > 1
    assert steps[-1]["elapsed_s"] < steps[0]["compile_s"] + sum(step["step_s"] for step in steps)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)


def test_without_packing_padding_is_no_useful_token(pretrain: Launch, tmp_path: Path) -> None:
    """Documents of 3 words a line: with a label a token but the first, and an end-of-text token."""
    lines = [json.dumps({"text": f"line number {n}"}) for n in range(400)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    words = ("--dataset", str(tmp_path / "text.jsonl"), "--no_packing")
    padded = run(pretrain, tmp_path, "padded", *words, ranks=2)
    for step in padded.of("step"):
        assert step["tokens"] == 4 * 64
        assert 0 < step["useful_tokens"] < step["tokens"] / 4
    alone = run(pretrain, tmp_path, "alone", *words, "--train_batch_size", "4", ranks=1)
    assert losses(alone) == pytest.approx(losses(padded), rel=1e-5)


def test_a_scheduler_in_the_json_is_the_one_that_runs(pretrain: Launch, tmp_path: Path) -> None:
    document = json.loads((CONFIGS / "zero1.json").read_text())
    params = {"total_num_steps": "auto", "warmup_num_steps": 2, "warmup_max_lr": "auto", "warmup_type": "linear"}
    document["scheduler"] = {"type": "WarmupDecayLR", "params": params}
    (tmp_path / "scheduled.json").write_text(json.dumps(document))
    words = ("--ds_config", str(tmp_path / "scheduled.json"), "--output_dir", str(tmp_path), "--run_name", "scheduled")
    done = pretrain(*words, *TINY, *SHORT)
    assert done.returncode == 0, done.stderr
    scheduled = read(tmp_path / "scheduled")
    assert (
        json.loads((tmp_path / "scheduled" / "ds_config.json").read_text())["scheduler"]["params"]["total_num_steps"]
        == 4
    )
    assert scheduled.header["schedule"]["type"] == "WarmupDecayLR"
    # Linear from 0 over two steps. DeepSpeed counts from 0 after the first step, which so has the start rate too.
    assert [step["lr"] for step in scheduled.of("step")] == pytest.approx([0.0, 0.0, 5e-4, 1e-3])


def test_bf16_runs_with_partitioned_weights(pretrain: Launch, tmp_path: Path, plain: Run) -> None:
    low = run(pretrain, tmp_path, "bf16", "--bf16", "--max_steps", "1", strategy="zero3")
    assert low.header["numerics"]["precision"] == "bf16"
    assert any("bf16 will be very slow" in warning for warning in low.header["warnings"]) or has_native_bf16()
    assert losses(low) == pytest.approx(losses(plain)[:1], rel=2e-3)
    assert all(step["grad_norm"] > 0 for step in low.of("step"))


def test_gpt2_trains_and_a_directory_is_continued(pretrain: Launch, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "vocab_size": 8192, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 2}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0})
    )
    given = ("--ds_config", str(CONFIGS / "zero2.json"), "--output_dir", str(tmp_path), "--seq_len", "64")
    words = (*given, "--per_device_train_batch_size", "4", "--learning_rate", "1e-2", "--sample_tokens", "4")
    done = pretrain(*words, "--model", str(tmp_path / "config.json"), "--run_name", "new", "--max_steps", "20")
    assert done.returncode == 0, done.stderr
    new = read(tmp_path / "new")
    done = pretrain(
        *words, "--model", str(tmp_path / "new" / "checkpoints" / "final"), "--run_name", "on", "--max_steps", "1"
    )
    assert done.returncode == 0, done.stderr
    assert losses(new)[0] == pytest.approx(math.log(8192), abs=0.3)
    assert losses(read(tmp_path / "on"))[0] < losses(new)[0] - 0.5


@pytest.mark.parametrize("launcher", ["deepspeed", "python"])
def test_an_interrupt_ends_the_step_and_keeps_a_checkpoint(tmp_path: Path, launcher: str) -> None:
    """Ctrl-C reaches the whole foreground group, as from a terminal."""
    script = [str(ROOT / "launch" / "pretrain.py"), "--ds_config", str(CONFIGS / "zero1.json"), *TINY]
    script += ["--max_steps", "100000", "--save_steps", "100000", "--output_dir", str(tmp_path), "--run_name", launcher]
    programs = {
        "deepspeed": [
            str(Path(sys.executable).parent / "deepspeed"),
            "--num_gpus",
            "2",
            "--master_port",
            str(free_port()),
        ],
        "python": [sys.executable],
    }
    process = subprocess.Popen(
        [*programs[launcher], *script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    metrics = tmp_path / launcher / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count('"kind": "step"') > 3):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=90)
    ended = read(tmp_path / launcher)
    assert ended.status == "interrupted"
    step = ended.of("step")[-1]["step"]
    assert (ended.path / "checkpoints" / f"step-{step:08d}" / "manifest.json").is_file()
    if launcher == "python":
        assert process.returncode == 130


def test_a_killed_rank_is_a_crashed_run_and_no_process_stays(tmp_path: Path) -> None:
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    script = [str(ROOT / "launch" / "pretrain.py"), "--ds_config", str(CONFIGS / "zero2.json"), *TINY]
    script += ["--max_steps", "100000", "--output_dir", str(tmp_path), "--run_name", "killed"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        [*launcher, *script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count('"kind": "step"') > 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(rank_pid(str(tmp_path), 1), signal.SIGKILL)
    process.communicate(timeout=90)
    assert process.returncode != 0
    killed = read(tmp_path / "killed")
    assert killed.status == "crashed"
    assert killed.last_error


def rank_pid(word: str, rank: int) -> int:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--local_rank={rank}".encode() in command and word.encode() in b" ".join(command):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


def has_native_bf16() -> bool:
    from lm_scale.strategy.machine import detect

    return detect().bf16
