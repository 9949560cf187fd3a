"""The command and `load`: what a user, a program and a notebook get."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm_scale.arguments import UserError
from lm_scale.report import load

CONTRACT = """name, owner, source, status, last_error, started_at, finished_at, engine, strategy, zero_stage, offload,
world_size, nodes, data_parallel, pipeline_stages, tensor_parallel, micro_batch, grad_accum, global_batch, seq_len,
packing, precision, reduction_precision, master_weights, activation_checkpointing, torch_compile, attn_implementation,
loss, model, params, dataset, tokenizer, seed, optimizer, learning_rate, lr_schedule, steps, planned_steps,
skipped_steps, runtime_s, step_s, step_s_iqr, steps_per_s, samples_per_s, tokens_per_s, tokens_per_s_per_rank,
useful_tokens_per_s, samples_seen, tokens_seen, train_loss, eval_loss, eval_bits_per_byte, grad_norm,
peak_device_bytes, peak_reserved_bytes, device_memory_bytes, peak_host_bytes, predicted_device_bytes,
predicted_host_bytes, model_flops_per_s, mfu, link_bytes_per_s, speedup, efficiency, delta_loss, device, wandb_url,
flags""".replace("\n", " ").split(", ")  # the keys of the contract, in its order


@pytest.fixture
def runs(make_run: Any, one_step: Any) -> Path:
    """Two finished runs, the second with other precision and a third of the step time, and a crashed one."""
    make_run("zero0", [one_step(n) for n in range(1, 13)], created_at="2026-01-01T12:00:00+00:00")
    later = {"started_at": "2026-01-01T13:00:00+00:00", "finished_at": "2026-01-01T13:01:00+00:00"}
    make_run(
        *("zero1", [one_step(n, step_s=1 / 3, peak_host_bytes=3 * 1024**3) for n in range(1, 13)]),
        **{"created_at": "2026-01-01T13:00:00+00:00", **later, "numerics": {"precision": "bf16"}},
    )
    crash = {
        "status": "crashed",
        "last_error": "RuntimeError: no | space <left>",
        "created_at": "2026-01-01T14:00:00+00:00",
    }
    path: Path = make_run("zero2", [], **crash, started_at=None, finished_at=None)
    return path.parent


def test_json_is_a_list_of_objects_with_the_keys_of_the_contract(command: Any, runs: Path) -> None:
    done = command(runs, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == ["zero0", "zero1", "zero2"]
    for row in rows:
        assert list(row)[: len(CONTRACT)] == CONTRACT
    assert rows[1]["speedup"] == pytest.approx(3, abs=1e-12)
    assert rows[1]["flags"] == [{"code": "differs_precision", "message": "precision bf16, the baseline zero0 has fp32"}]
    assert (rows[2]["tokens_per_s"], rows[2]["last_error"]) == (None, "RuntimeError: no | space <left>")


def test_csv_holds_every_key_unrounded(command: Any, runs: Path) -> None:
    rows = list(csv.DictReader(command(runs, "--format=csv").stdout.splitlines()))
    assert list(rows[0])[: len(CONTRACT)] == CONTRACT
    assert float(rows[1]["step_s"]) == 1 / 3
    assert rows[1]["flags"] == "differs_precision"
    assert (rows[2]["tokens_per_s"], rows[0]["packing"]) == ("", "true")


def test_the_piped_table_fits_120_columns_without_colour_and_explains_itself(command: Any, runs: Path) -> None:
    out = command(runs).stdout
    table, _, legend = out.partition("\nr: ")
    assert "\x1b" not in out
    assert max(map(len, table.splitlines())) <= 120
    by_name = {line.split()[0]: " ".join(line.split()) for line in table.splitlines() if line.startswith("zero")}
    # strategy ranks micro x accum tokens/s a rank spread ms memory MFU r eff train eval status flags
    # MFU: 1,024 tokens/s x 30e6 FLOPs over 2 x 1e11 FLOP/s
    assert by_name["zero0"] == "zero0 2 4 x 2 1,024 512 0% 1,000 <0.01 15% 1.00 1.00 8.0000 - completed"
    assert by_name["zero1"] == "zero1 2 4 x 2 3,072 1,536 0% 333 3.00 46% 3.00 3.00 8.0000 - completed a"
    assert by_name["zero2"] == "zero2 2 4 x 2 - - - - - - - - - - crashed"
    assert "host" in table
    assert "GiB" in table
    assert legend.startswith("tokens/s over those of zero0 (the first run")
    assert "zero2: crashed: RuntimeError: no | space <left>" in legend
    assert "a differs_precision: products in another precision than the baseline's" in legend


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_leaves_spare_columns_out_and_says_so(runs: Path, width: int) -> None:
    script = (
        "import sys; sys.stdout.isatty = lambda: True\n"
        f"from lm_scale.report.__main__ import main; main([{str(runs)!r}])"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": str(width), "TERM": "xterm"}
    out = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out)
    if width == 80:  # at 40 columns nothing helps: the terminal wraps whole numbers
        assert max(len(line) for line in shown.splitlines()[:6]) <= 80
    assert "left out at this width: tokens/s, train loss, eff" in shown
    assert "…" not in out
    assert "1,536" in out  # zero1's tokens/s a rank


def test_names_are_escaped_in_markdown_and_unicode_stays(command: Any, make_run: Any, steps: Any) -> None:
    path = make_run("<script>", steps(6), strategy={"name": "a|b"})
    make_run("обучение", steps(6), strategy={"name": "zero2_offload"})
    out = command(path.parent, "--format", "md").stdout
    head, rule, *rows = out.splitlines()[:4]
    assert "| a\\|b |" in rows[0] or "| a\\|b |" in rows[1]
    assert "| zero2_offload |" in out
    assert head.count("|") == rule.count("|")
    out = command(path.parent, "--format", "md", "--columns", "name,strategy").stdout
    assert "&lt;script&gt;" in out
    assert "<script>" not in out
    assert "обучение" in out


def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal(command: Any, make_run: Any, steps: Any) -> None:
    path = make_run("zero0", steps(6), strategy={"name": "evil\x1b[2J\nzero9 [red]x"})
    out = command(path).stdout
    assert "\x1b" not in out
    assert "evil [2J zero9 [red]x" in out


def test_columns_choose_the_keys_in_every_format(command: Any, runs: Path) -> None:
    chosen = ("--columns", "name,peak_host_bytes,torch_compile")
    assert json.loads(command(runs, "--format", "json", *chosen).stdout)[0] == {
        **{"name": "zero0", "peak_host_bytes": 1012, "torch_compile": False}
    }
    assert command(runs, "--format", "csv", *chosen).stdout.splitlines()[2] == "zero1,3221225472,false"
    assert command(runs, *chosen).stdout.splitlines()[-2].split() == ["zero1", "3.00", "GiB", "false"]
    bad = command(runs, "--columns", "name,speed")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert bad.stderr.startswith("error: --columns speed: no such row key")


def test_a_damaged_run_is_one_warning_and_the_others_are_shown(command: Any, runs: Path) -> None:
    (runs / "zero1" / "run.json").write_text('{"schema": 1, "na')
    done = command(runs, "--format", "json")
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: left out: {runs / 'zero1' / 'run.json'}: not valid JSON")
    assert done.stderr.count("\n") == 1
    assert [row["name"] for row in json.loads(done.stdout)] == ["zero0", "zero2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone"], "error: gone: no such run, log or folder\n"),
        (["runs", "--formt", "md"], "error: --formt: unknown argument; did you mean --format?\n"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(command: Any, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "runs").mkdir()
    done = command(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_an_empty_folder_and_one_of_damaged_runs_are_status_1(command: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command(tmp_path / "empty")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {tmp_path / 'empty'}: no runs")
    (runs / "zero1" / "run.json").write_text('{"schema": 1, "na')
    done = command(runs / "zero1")
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == ["warning", "error"]


def test_a_run_given_twice_is_one_row_and_bare_report_reads_runs(command: Any, runs: Path) -> None:
    assert len(json.loads(command("runs", runs / "zero1", "--format", "json", cwd=runs.parent).stdout)) == 3
    assert len(json.loads(command("--format", "json", cwd=runs.parent).stdout)) == 3


def test_an_ascii_terminal_and_a_reader_that_stops_early_are_no_traceback(
    command: Any, make_run: Any, steps: Any
) -> None:
    path = make_run("обучение", steps(6), strategy={"name": "обучение"})
    done = command(path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\u043e" in done.stdout


def test_load_gives_typed_columns_to_a_notebook(runs: Path) -> None:
    table = load(runs)
    assert list(table.columns)[: len(CONTRACT)] == CONTRACT
    assert [str(table[key].dtype) for key in ("steps", "speedup", "packing", "name")] == [
        *("Int64", "Float64", "boolean", "string")
    ]
    assert table["peak_host_bytes"].tolist()[:2] == [1012, 3 * 1024**3]
    assert table["peak_device_bytes"].isna().all()
    assert table["flags"][1][0]["code"] == "differs_precision"
    assert table.set_index("name")["speedup"]["zero1"] == pytest.approx(3)


def test_load_says_what_is_wrong(runs: Path) -> None:
    with pytest.raises(UserError, match="no such run, log or folder"):
        load(runs / "gone")
    (runs / "zero2" / "run.json").write_text("[]")
    with pytest.warns(UserWarning, match="no run header"):
        assert len(load([runs])) == 2


def test_the_report_needs_neither_torch_nor_deepspeed_nor_transformers(runs: Path) -> None:
    script = (
        "import sys, lm_scale.report, lm_scale.report.__main__ as command\n"
        f"command.main([{str(runs)!r}]); lm_scale.report.load({str(runs)!r})\n"
        "loaded = {'torch', 'deepspeed', 'transformers'} & sys.modules.keys()\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
