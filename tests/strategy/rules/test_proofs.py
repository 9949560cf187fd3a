"""Each rule of the lint, proven on the installed DeepSpeed: what it does itself, and that the lint says so.

After an upgrade of DeepSpeed the tests that fail name the rules to revise.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from proof_cases import CASES, EFFECTIVE, FOUND, NUMBERED, PROBES, SOUND, Case

from lm_scale.strategy import known
from lm_scale.strategy.rules import check, effective
from lm_scale.strategy.rules.findings import Setting

FOLDER = Path(__file__).parent
SITE = Path(str(importlib.metadata.distribution("deepspeed").locate_file("deepspeed")))


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What DeepSpeed did with each case, all in one process."""
    told = tmp_path_factory.mktemp("proofs") / "told.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "proof_worker.py"), str(told)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert told.exists(), run.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(told.read_text(encoding="utf-8"))
    return found


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=f"{case.number or ''} {case.name}") for case in cases]
    )


@named([case for case in CASES if case.how != "source"])
def test_deepspeed_does_what_the_rule_says(case: Case, deepspeed: dict[str, dict[str, Any]]) -> None:
    told = deepspeed[case.name]
    assert re.search(case.outcome, told["outcome"]), told
    if case.probe:
        assert told["value"] == case.value


@named([case for case in CASES if case.how == "source"])
def test_the_guard_stands_in_deepspeeds_source(case: Case) -> None:
    module = SITE.parent.joinpath(*case.probe.split("."))
    path = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    assert re.search(case.outcome, path.read_text(encoding="utf-8")), path


@named([case for case in NUMBERED + FOUND if case.rule])
def test_the_lint_reports_it(case: Case) -> None:
    found = check(case.document, Setting(world_size=1, device=case.device))
    assert (case.rule, case.path, case.severity) in [(one.rule, one.path, one.severity) for one in found]


@named(SOUND)
def test_a_sound_file_has_no_error(case: Case) -> None:
    assert [one for one in check(case.document, Setting(1, "cpu")) if one.severity == "error"] == []


@pytest.mark.parametrize("name", EFFECTIVE)
def test_effective_values_are_those_of_the_engine(name: str, deepspeed: dict[str, dict[str, Any]]) -> None:
    """Among them the bytes of the buckets, as measured during backward."""
    told = deepspeed[name]
    ours = {path: value for path, value, _ in effective.effective(EFFECTIVE[name])}
    for path in [*PROBES, "bucket bytes a rank"]:
        if path in ours:
            assert ours[path] == told[path], path
    torch_names = {"bf16": "torch.bfloat16", "fp32": "torch.float32"}
    assert torch_names[ours["data_types.grad_accum_dtype"]] == told["gradients"]
    assert torch_names[ours["communication_data_type"]] == told["wire"]


def test_every_fault_that_stops_deepspeed_is_an_error_of_the_lint() -> None:
    """But where it may not happen: Hugging Face fills the value, or the code brings what the file lacks."""
    stopped = [case for case in CASES if case.how not in ("source", "configure") and case.outcome != "^ok$"]
    lenient = {case.rule for case in stopped if case.severity != "error"}
    assert lenient == {"auto-filled", "optimizer-missing", "offload-client-optimizer"}


def test_all_47_rules_have_a_proof() -> None:
    assert {case.number for case in NUMBERED} == set(range(1, 48))


def test_the_proofs_are_of_the_version_that_the_rules_are_for() -> None:
    assert importlib.metadata.version("deepspeed") == known.table()["deepspeed_version"]
