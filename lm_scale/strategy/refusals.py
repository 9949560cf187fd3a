"""Why this project does not start a run: what the lint calls an error, and what DeepSpeed can do and this cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.strategy.load import Document, get
from lm_scale.strategy.rules import check
from lm_scale.strategy.rules.findings import Finding, Setting
from lm_scale.strategy.source import AUTO


def faults(document: Document, setting: Setting) -> list[str]:
    """All that keeps the run from being what a complete JSON says: `dotted.key: what; what to do`, one line each."""
    found = [one_line(finding) for finding in check(document, setting) if finding.severity == "error"]
    return found + unsupported(document)


def faults_of_file(document: Document, setting: Setting) -> list[str]:
    """The same of a JSON whose gaps are still to be filled: what it lacks is no fault, what it says may be one."""
    found = [finding for finding in check(document, setting) if finding.severity == "error"]
    return [one_line(finding) for finding in found if _is_said(document, finding)] + unsupported(document)


def refuse(path: Path, faults: list[str]) -> None:
    """Raises UserError with the first faults, if there are any."""
    if faults:
        rest = f" (and {len(faults) - 3} more: python -m lm_scale.lint {path})" if len(faults) > 3 else ""
        raise UserError(f"{path}: {' | '.join(faults[:3])}{rest}")


def check_forms(path: Path, document: Document) -> None:
    """Refuse forms that even `--no_lint` cannot run, since values are filled into them.

    Raises:
        UserError: the first such form.
    """
    for dotted in ("bf16", "bfloat16", "fp16", "zero_optimization", "optimizer", "optimizer.params", "scheduler"):
        if not isinstance(get(document, dotted, {}), dict):
            raise UserError(f"{path}: {dotted}: {get(document, dotted)!r} is no block; write it as {{...}}")
    for block in ("bf16", "bfloat16", "fp16"):
        value = get(document, f"{block}.enabled", False)
        if not isinstance(value, bool) and value != AUTO:
            raise UserError(f'{path}: {block}.enabled: {value!r}: write true, false or "auto"')
    for key, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        if get(document, f"zero_optimization.{key}"):
            raise UserError(f'{path}: zero_optimization.{key}: an old name; write "{new}": {{"device": "cpu"}}')
    clipping = get(document, "gradient_clipping", 0.0)
    if clipping != AUTO and (isinstance(clipping, bool) or not isinstance(clipping, int | float)):
        raise UserError(f"{path}: gradient_clipping: {clipping!r} is no number")


def one_line(finding: Finding) -> str:
    """`dotted.key: what is wrong; what to do`."""
    fix = f"; {finding.fix}" if finding.fix else ""
    return f"{finding.path}: {finding.message}{fix}" if finding.place else f"{finding.message}{fix}"


def unsupported(document: Document) -> list[str]:
    """What DeepSpeed can do and this version of the project does not run."""
    found = []
    for path in ("sequence_parallel_size",):
        value = get(document, path, 1)
        if value not in (0, 1):
            found.append(f"{path}: {value}: this version of lm-scale does not run it; delete it")
    if get(document, "torch_autocast.enabled", False):
        found.append("torch_autocast: not supported here, its products would be recorded as fp32; use bf16 or fp16")
    for key in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization"):
        if get(document, f"activation_checkpointing.{key}", False):
            found.append(f"activation_checkpointing.{key}: not supported here; set it to false")
    return found


def _is_said(document: Document, finding: Finding) -> bool:
    node: Any = document
    for key in finding.place:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True
