"""Two launches that must be one run: other world sizes with the same global batch, and a run resumed half-way."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from launches import CONFIGS, Launch
from safetensors.torch import load_file

from lm_scale.records import Run, read

BATCH = (
    *("--model", "tiny", "--seq_len", "64", "--train_batch_size", "8", "--per_device_train_batch_size", "2"),
    *("--bf16", "false"),  # the same numbers on a CPU that multiplies bf16 too
)
LENGTH = ("--max_steps", "16", "--learning_rate", "1e-3", "--sample_tokens", "0", "--per_device_eval_batch_size", "32")


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same_run")


def run(pretrain: Launch, output: Path, name: str, strategy: str, ranks: int, *words: str) -> Run:
    given = ("--ds_config", str(CONFIGS / f"{strategy}.json"), "--output_dir", str(output), "--run_name", name)
    done = pretrain(*given, *BATCH, *LENGTH, *words, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(output / name)


def losses(run: Run) -> list[float]:
    return [step["loss"] for step in run.of("step")]


@pytest.fixture(scope="session")
def two_ranks(pretrain: Launch, output: Path) -> Run:
    """With checkpoints, from which others go on."""
    return run(pretrain, output, "two", "zero2", 2, "--save_steps", "8")


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_same_global_batch_gives_the_same_losses_at_any_world_size(
    pretrain: Launch, output: Path, two_ranks: Run, ranks: int
) -> None:
    other = run(pretrain, output, f"ranks{ranks}", "zero2", ranks, "--no_save")
    assert other.header["batch"]["grad_accum"] == 4 // ranks
    assert losses(other) == pytest.approx(losses(two_ranks), rel=1e-5)
    assert other.of("eval")[-1]["loss"] == pytest.approx(two_ranks.of("eval")[-1]["loss"], rel=1e-5)
    assert not (other.path / "checkpoints").exists()


def test_a_checkpoint_every_eight_steps(two_ranks: Run) -> None:
    assert sorted(path.name for path in (two_ranks.path / "checkpoints").iterdir()) == [
        "final",
        "step-00000008",
        "step-00000016",
    ]


def test_a_resumed_run_has_the_losses_of_the_uninterrupted_one(pretrain: Launch, output: Path, two_ranks: Run) -> None:
    """What the killed run did after its checkpoint is done again, and recorded once."""
    shutil.copytree(two_ranks.path, output / "resumed")
    shutil.rmtree(output / "resumed" / "checkpoints" / "step-00000016")
    resumed = run(pretrain, output, "resumed", "zero2", 2, "--resume", "auto")
    assert [step["step"] for step in resumed.of("step")] == list(range(1, 17))
    assert losses(resumed) == pytest.approx(losses(two_ranks), rel=1e-6)
    assert resumed.header["resumed_step"] == 8
    assert len([evaluation for evaluation in resumed.of("eval") if evaluation["final"]]) == 1


def test_a_finished_run_resumed_trains_no_further(pretrain: Launch, output: Path, two_ranks: Run) -> None:
    shutil.copytree(two_ranks.path, output / "finished")
    finished = run(pretrain, output, "finished", "zero2", 2, "--resume", "auto", "--no_save")
    assert losses(finished) == losses(two_ranks)
    assert finished.status == "completed"
    assert finished.of("eval")[-1]["loss"] == pytest.approx(two_ranks.of("eval")[-1]["loss"], rel=1e-6)


def test_zero3_resumes_too(pretrain: Launch, output: Path) -> None:
    whole = run(pretrain, output, "zero3", "zero3", 2, "--save_steps", "8", "--no_save")
    shutil.copytree(whole.path, output / "zero3_resumed")
    shutil.rmtree(output / "zero3_resumed" / "checkpoints" / "step-00000016")
    again = run(pretrain, output, "zero3_resumed", "zero3", 2, "--resume", "auto", "--no_save")
    assert losses(again) == pytest.approx(losses(whole), rel=1e-6)


def test_a_pipeline_of_two_replicas_is_the_same_run_and_resumes(pretrain: Launch, output: Path, two_ranks: Run) -> None:
    words = ("--save_steps", "8", "--eval_steps", "8")
    whole = run(pretrain, output, "pipeline", "pipeline2", 4, *words)
    assert whole.header["layout"] == {
        **{"world_size": 4, "nodes": 1, "data_parallel": 2, "pipeline_stages": 2, "tensor_parallel": 1}
    }
    assert losses(whole) == pytest.approx(losses(two_ranks), rel=1e-5)
    assert whole.of("eval")[-1]["loss"] == pytest.approx(two_ranks.of("eval")[-1]["loss"], rel=1e-5)
    assert all(0 < step["idle_share"] < 1 for step in whole.of("step"))
    same_weights(whole, two_ranks)
    shutil.copytree(whole.path, output / "pipeline_resumed")
    shutil.rmtree(output / "pipeline_resumed" / "checkpoints" / "step-00000016")
    again = run(pretrain, output, "pipeline_resumed", "pipeline2", 4, "--resume", "auto", "--no_save")
    assert losses(again) == pytest.approx(losses(whole), rel=1e-6)


def test_tensor_parallel_ranks_are_the_same_run(pretrain: Launch, output: Path, two_ranks: Run) -> None:
    tensor = run(pretrain, output, "tensor", "tp2_zero1", 2)
    assert losses(tensor) == pytest.approx(losses(two_ranks), rel=1e-5)
    assert tensor.of("eval")[-1]["tokens"] == two_ranks.of("eval")[-1]["tokens"]
    assert tensor.of("eval")[-1]["loss"] == pytest.approx(two_ranks.of("eval")[-1]["loss"], rel=1e-5)
    assert tensor.header["model"]["params"] == two_ranks.header["model"]["params"]
    same_weights(tensor, two_ranks)


def same_weights(one: Run, other: Run) -> None:
    """The exported directories hold the same tensors, as far as 16 steps of Adam at lr 1e-3 leave them."""
    paths = [run.path / "checkpoints" / "final" / "model.safetensors" for run in (one, other)]
    ours, theirs = (load_file(path) for path in paths)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 1e-4, name


def test_resuming_without_a_checkpoint_is_refused(pretrain: Launch, output: Path, two_ranks: Run) -> None:
    shutil.copytree(two_ranks.path, output / "bare")
    shutil.rmtree(output / "bare" / "checkpoints")
    before = (output / "bare" / "metrics.jsonl").read_bytes()
    words = ("--ds_config", str(CONFIGS / "zero2.json"), "--resume", str(output / "bare"), "--output_dir", str(output))
    done = pretrain(*words, *BATCH, *LENGTH, ranks=2)
    assert done.returncode == 2
    assert "no checkpoint to go on from" in done.stderr
    assert (output / "bare" / "metrics.jsonl").read_bytes() == before


def test_resuming_another_layout_is_refused(pretrain: Launch, output: Path, two_ranks: Run) -> None:
    words = ("--ds_config", str(CONFIGS / "zero2.json"), "--resume", str(two_ranks.path), "--output_dir", str(output))
    done = pretrain(*words, *BATCH, *LENGTH, ranks=1)
    assert done.returncode == 2
    assert "layout.world_size was 2 and is 1 now" in done.stderr


def test_a_budget_ends_the_run_and_drives_its_schedule(pretrain: Launch, output: Path) -> None:
    given = ("--ds_config", str(CONFIGS / "zero1.json"), "--output_dir", str(output), "--run_name", "budget")
    words = (
        "--budget",
        "6s",
        "--eval_steps",
        "4",
        "--no_save",
        "--sample_tokens",
        "0",
        "--lr_scheduler_type",
        "linear",
    )
    done = pretrain(*given, *BATCH, *words, ranks=2)
    assert done.returncode == 0, done.stderr
    budget = read(output / "budget")
    steps = budget.of("step")
    assert budget.status == "budget"
    assert steps[-2]["elapsed_s"] < 6 <= steps[-1]["elapsed_s"]
    # Linear to zero over the budget's time: each step's rate follows from the clock at the end of the step before.
    for before, step in pairwise(steps):
        share = before["elapsed_s"] / 6
        rise, fall = share / 0.05, 1 - (share - 0.05) / 0.95
        assert step["lr"] == pytest.approx(5e-4 * min(rise, fall), rel=1e-6)
    assert [evaluation["final"] for evaluation in budget.of("eval")].count(True) == 1
    assert [evaluation["step"] for evaluation in budget.of("eval")][:1] == [4]
