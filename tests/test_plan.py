"""The command `plan`: what it promises to programs, the homework's puzzle, and its numbers against real engines."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launches import CONFIGS

from lm_scale import plan
from lm_scale.arguments import PlanArguments, UserError
from lm_scale.costs.resolved import predicted_bytes
from lm_scale.costs.show import planned_phases
from lm_scale.models.presets import load_config
from lm_scale.records import Run

MIB = 2**20
KEYS = {
    "items",
    "peak_device_bytes",
    "peak_reserved_bytes",
    "peak_host_bytes",
    "nvme_bytes",
    "peak_phase",
    "fits",
    "model_flops_per_token",
    "wire_bytes_per_step",
    "step_s",
    "tokens_per_s",
    "tokens_per_s_per_rank",
    "bound",
    "required_link_bytes_per_s",
}
HOMEWORK = Path(__file__).parents[2] / "shared" / "homework" / "truth.json"


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What `plan --format json` prints."""
    assert plan.main([*words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def config(folder: Path, **document: Any) -> str:
    path = folder / f"zero{document.get('zero_optimization', {}).get('stage', 0)}.json"
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.json")))
def test_every_shipped_strategy_has_a_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--ds_config", str(CONFIGS / f"{name}.json"), "--model", "llama-7b", "--world_size", "16")
    found = planned(capsys, *words, "--device", "h100", "--price_per_hour", "2.5")
    assert found.keys() >= KEYS
    for one in found["items"]:
        assert one.keys() == {"name", "where", "bytes", "phase", "formula"}
        assert one["where"] in ("device", "host", "nvme")
        assert one["bytes"] > 0
    assert found["peak_device_bytes"] <= found["peak_reserved_bytes"]
    assert found["precision"] == "bf16"  # "auto", resolved for the device that was named
    assert (found["nvme_bytes"] > 0) == ("nvme" in name)
    assert found["cost_per_billion_tokens"] == pytest.approx(2.5 * 16 * 1e9 / found["tokens_per_s"] / 3600)
    assert plan.main([*words, "--device", "v100-32gb"]) == 0
    assert "fp16" in capsys.readouterr().out  # a V100 does not multiply bf16


def test_the_puzzle_of_the_homework(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """960,881,664 parameters at micro-batch 16: 21,005 MiB on one A100, 35,523 MiB a GPU under ZeRO-1 on two.

    Pure bf16 with compiled blocks against fp32 masters, two buckets of 5e8 elements and blocks as they are.
    """
    if not HOMEWORK.exists():
        pytest.skip("the homework's measurements are not on this machine")
    truth = {run["run_id"]: run for run in json.loads(HOMEWORK.read_text())}
    optimizer = {"type": "AdamW", "params": {"lr": 5e-4, "torch_adam": True}}
    common = ("--model", "qwen3-1b", "--loss", "full", "--device", "a100-80gb-pcie", "--seq_len", "512")
    plain = truth["Baseline_1_GPU"]
    batch = {"train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": plain["grad_accum"]}
    alone = planned(
        capsys,
        *("--ds_config", config(tmp_path, bf16={"enabled": True}, optimizer=optimizer, **batch), *common),
        *("--engine", "torch", "--master_weights", "false", "--torch_compile"),
    )
    assert alone["params"] == plain["params"]
    assert alone["peak_process_bytes"] / MIB == pytest.approx(plain["peak_mem_mib_notebook"], rel=0.06)
    for run_id, most in (("DeepSpeed_1", 0.05), ("DeepSpeed_3", 0.08)):
        run = truth[run_id]
        path = config(tmp_path, optimizer=optimizer, **run["deepspeed_config"])
        shared = planned(capsys, "--ds_config", path, *common, "--world_size", "2")
        assert shared["peak_process_bytes"] / MIB == pytest.approx(run["peak_mem_mib_notebook"], rel=most)
        if run_id == "DeepSpeed_1":
            sizes = {one["name"]: one["bytes"] for one in shared["items"]}
            assert sizes["master weights"] == 2 * plain["params"]  # 4 bytes a parameter over two ranks
            assert sizes["reduction buckets"] == 2 * 2 * 500_000_000
            assert "master weights" not in {one["name"] for one in alone["items"]}


def test_max_finds_the_largest_micro_batch(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ds_config", str(CONFIGS / "zero3.json"), "--model", "llama-7b", "--seq_len", "4096"]
    words += ["--world_size", "8", "--device", "a100-80gb"]
    largest = planned(capsys, *words, "--max")
    assert largest["fits"]
    size = largest["micro_batch"]
    same = planned(capsys, *words, "--per_device_train_batch_size", str(size))
    assert same["needed_bytes"] == largest["needed_bytes"]
    assert not planned(capsys, *words, "--per_device_train_batch_size", str(size + 1))["fits"]


def test_max_finds_the_fewest_ranks_where_no_micro_batch_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ds_config", str(CONFIGS / "zero3.json"), "--model", "llama-7b", "--seq_len", "1024"]
    found = planned(capsys, *words, "--world_size", "1", "--device", "rtx4090", "--max")
    assert found["fits"]
    assert found["micro_batch"] == 1
    assert found["world_size"] > 1


def test_all_ranks_every_strategy_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--all", "--ds_config", str(CONFIGS / "zero2.json"), "--model", "llama-7b", "--seq_len", "2048"]
    words += ["--world_size", "8", "--device", "a100-80gb", "--per_device_train_batch_size", "1"]
    ranking = planned(capsys, *words)
    assert {one["strategy"] for one in ranking} == {file.stem for file in CONFIGS.glob("*.json")}
    assert [one["fits"] for one in ranking] == sorted((one["fits"] for one in ranking), reverse=True)
    rates = [one["tokens_per_s"] for one in ranking if one["fits"]]
    assert rates == sorted(rates, reverse=True)
    assert plan.main(words) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"{ranking[0]['strategy']} first: ")
    assert not next(one for one in ranking if one["strategy"] == "zero0")["fits"]  # 16 bytes a parameter: 108 GB
    assert "zero0" in last.rpartition("(")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "h1000"), "did you mean h100"),
        (("--device", "h100", "--world_size", "0"), "--world_size 0"),
        (("--device", "h100", "--model", "minni"), "did you mean mini"),
        (("--device", "h100", "--override", "zero_optimization.stagee=2"), "stagee"),
        (("--device", "h100", "--seq_len", "1000000"), "positions"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.main(["--ds_config", str(CONFIGS / "zero2.json"), "--model", "mini", *words])


def test_an_unknown_family_is_counted_without_torch_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mixtral in small, by hand: per layer 4 x 64^2 of attention, 4 experts of 3 x 64 x 128, a router, two norms."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mixtral", **sizes, **heads}))
    words = ("--ds_config", str(CONFIGS / "zero2.json"), "--model", str(path), "--device", "h100")
    found = planned(capsys, *words, "--seq_len", "64")
    layer = 4 * 64 * 64 + 4 * 3 * 64 * 128 + 64 * 4 + 2 * 64
    assert found["params"] == 2 * layer + 2 * 256 * 64 + 64


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("zero1", ("--loss", "full", "--gradient_accumulation_steps", "2")),
        ("zero3_offload", ("--per_device_train_batch_size", "4")),
    ],
)
def test_the_closed_forms_are_those_of_deepspeed_itself(name: str, more: tuple[str, ...]) -> None:
    """A rehearsed rank of eight: its states, its fullest phase and its traffic."""
    command = [sys.executable, "-m", "lm_scale.plan", "--ds_config", str(CONFIGS / f"{name}.json"), "--model", "mini"]
    command += ["--world_size", "8", "--seq_len", "256", "--device", "cpu", "--rehearse", "--format", "json", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rehearsed = found["rehearsal"]
    assert found["params"] == rehearsed["params"]
    mine = {one["name"]: one["bytes"] for one in found["items"]}
    for ours, theirs in (("parameters", "parameters"), ("master weights", "master_weights"), ("optimizer",) * 2):
        assert mine[ours] == pytest.approx(rehearsed["state_bytes"][theirs], rel=0.01)
    peaks = [rehearsed["phases"][phase]["peak_bytes"] for phase in ("forward", "backward", "step")]
    assert max(planned_phases(found).values()) == pytest.approx(max(peaks), rel=0.03)
    for collective, size in found["wire_bytes_per_step"].items():
        assert size == pytest.approx(rehearsed["wire_bytes_per_step"][collective]["sent_bytes"], rel=0.01)


def test_state_and_host_memory_are_those_of_real_runs(strategies: dict[str, Run]) -> None:
    """The shipped strategies as they ran on two CPU ranks: state to 1 %, each peak of host memory to 10 %."""
    names = {field.name for field in dataclasses.fields(PlanArguments)} - {"ds_config"}
    solved = ("per_device_train_batch_size", "gradient_accumulation_steps", "train_batch_size", "learning_rate")
    for name, run in strategies.items():
        header = run.header
        given = {key: value for key, value in header["arguments"].items() if key in names and key not in solved}
        made = plan.make_plan(
            PlanArguments(
                ds_config=str(run.path / "ds_config.json"),
                world_size=2,
                device="cpu",
                vocab_size=header["model"]["vocab_size"],
                **given,
            )
        )
        state = header["state_bytes"]
        for ours, theirs in (("parameters", "parameters"), ("master weights", "master_weights"), ("optimizer",) * 2):
            found = [one for one in made.memory.items if one.name == ours]
            if not any(one.where == "nvme" for one in found):  # what lies in swap files is no live tensor
                assert sum(one.bytes for one in found) == pytest.approx(state[theirs], rel=0.01), (name, ours)
        measured = max(step["peak_host_bytes"] for step in run.of("step"))
        assert made.memory.host == pytest.approx(measured, rel=0.1), name


def test_a_run_can_ask_for_its_own_prediction() -> None:
    """What `run.json` and the rows hold: the numbers that `plan` prints; none for a family without closed forms."""
    arguments = PlanArguments(ds_config=str(CONFIGS / "zero2.json"), model="mini", world_size=4, device="h100")
    made = plan.make_plan(arguments)
    shared: dict[str, Any] = {"ranks_per_node": 4, "on_cpu": False}
    config = load_config("mini").config
    assert predicted_bytes(made.strategy, arguments, config, 4, **shared) == (made.memory.device, made.memory.host)
    assert predicted_bytes(made.strategy, arguments, {"model_type": "other"}, 4, **shared) == (None, None)
