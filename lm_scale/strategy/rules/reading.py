"""What DeepSpeed understands a JSON to say: stage, precision, offload devices, as far as the file fixes them.

Every reader takes any JSON, however wrong: a value of a wrong type is another rule's finding, and here reads as unknown
(None), so that one fault is reported once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any, Literal

from lm_scale.strategy.rules.findings import Finding, Place, Severity
from lm_scale.strategy.rules.nearest import edits
from lm_scale.strategy.source import AUTO as AUTO
from lm_scale.strategy.source import Document as Document

Precision = Literal["fp32", "bf16", "fp16"]

ZERO = "zero_optimization"
DTYPES = {
    "fp16": ("fp16", "torch.float16", "float16", "half"),
    "bf16": ("bf16", "torch.bfloat16", "bfloat16"),
    "fp32": ("fp32", "torch.float32", "float32", "float"),
    "int8": ("int8", "torch.int8"),
}
"""Names of number types in `data_types` and `torch_autocast.dtype` (`DtypeEnum`, runtime/config.py)."""


def value(document: Document, *place: str) -> Any:
    """The value at a place; None where it is absent, `null`, `"auto"` (to DeepSpeed the same) or in no block."""
    node: Any = document
    for key in place:
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return None if node == AUTO else node


def raw(document: Document, *place: str) -> Any:
    """The value at a place as written; None where it is absent."""
    node: Any = document
    for key in place:
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


def finding(document: Document, place: Place, severity: Severity, rule: str, message: str, fix: str = "") -> Finding:
    """A finding at a place, with the value as the file has it there."""
    return Finding(place, raw(document, *place), severity, rule, message, fix)


def has_auto(node: Any) -> bool:
    """Whether some value is `"auto"`: the file is then for Hugging Face's Trainer, Accelerate or this project."""
    return any(has_auto(inner) for inner in node.values()) if isinstance(node, dict) else node == AUTO


def block(document: Document, *place: str) -> Document:
    """The block at a place; empty where there is none."""
    found = value(document, *place)
    return found if isinstance(found, dict) else {}


def number(document: Document, *place: str) -> int | float | None:
    """The number at a place; None where there is none, or one too large to compute with, infinite or no number."""
    found = value(document, *place)
    computes = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) <= sys.float_info.max
    return found if computes else None


def on(document: Document, *place: str) -> bool:
    """Whether the switch at a place is surely on: `true`, or what pydantic takes for it."""
    found = value(document, *place)
    if isinstance(found, str):
        return found.lower() in ("true", "on", "yes", "y", "t", "1")
    return found is True or (isinstance(found, int | float) and found == 1)


def off(document: Document, *place: str) -> bool:
    """Whether the switch at a place is surely off, by the file's own word."""
    found = value(document, *place)
    if isinstance(found, str):
        return found.lower() in ("false", "off", "no", "n", "f", "0")
    return found is False or (isinstance(found, int | float) and found == 0)


def stage(document: Document) -> int | None:
    """The ZeRO stage: 0 where the file names none, None where it names none that DeepSpeed takes (or `"auto"`)."""
    zero = raw(document, ZERO)
    if isinstance(zero, bool):
        return int(zero)
    if zero is None or (isinstance(zero, dict) and "stage" not in zero):
        return 0
    found = number(document, ZERO, "stage")
    return int(found) if found in (0, 1, 2, 3) else None


def half_block(document: Document) -> str:
    """`bf16`, or its old name where that alone stands: DeepSpeed reads the second only without the first."""
    return "bfloat16" if raw(document, "bf16") is None and raw(document, "bfloat16") is not None else "bf16"


def precision(document: Document) -> Precision | None:
    """The type of the weights in the products; None where it is `"auto"` or both kinds are on."""
    bf16 = half_block(document)
    if AUTO in (raw(document, bf16, "enabled"), raw(document, "fp16", "enabled")):
        if on(document, bf16, "enabled"):
            return "bf16"
        return "fp16" if on(document, "fp16", "enabled") else None
    both = (on(document, bf16, "enabled"), on(document, "fp16", "enabled"))
    return {(True, False): "bf16", (False, True): "fp16", (False, False): "fp32"}.get(both)  # type: ignore[return-value]


def dtype(name: Any) -> str | None:
    """The short name of a number type by any of its names; None where it is no name of one."""
    return next((short for short, names in DTYPES.items() if name in names), None) if isinstance(name, str) else None


def offload(document: Document, kind: Literal["optimizer", "param"]) -> tuple[str, Place]:
    """The device to which the optimizer or the weights go (`none`, `cpu`, `nvme`) and the place that says so.

    `cpu_offload` and `cpu_offload_param` are the old names of `"device": "cpu"`.
    """
    old = {"optimizer": "cpu_offload", "param": "cpu_offload_param"}[kind]
    if on(document, ZERO, old):
        return "cpu", (ZERO, old)
    device = value(document, ZERO, f"offload_{kind}", "device")
    return (device if device in ("cpu", "nvme") else "none"), (ZERO, f"offload_{kind}", "device")


def pipeline_stages(document: Document) -> int | None:
    """The stages of a pipeline: None without a `pipeline` block, 1 where the block does not say.

    DeepSpeed never reads `pipeline.stages` (the code passes a `PipelineModule`); this project does.
    """
    if not isinstance(raw(document, "pipeline"), dict) or not raw(document, "pipeline"):
        return None
    found = number(document, "pipeline", "stages")
    return int(found) if found is not None else 1


def nearest(name: str, names: Iterable[str]) -> str:
    """The known name closest to a misspelt one, whatever the case; empty where none is close."""
    folded = {known.casefold(): known for known in names}
    typo = [known for known in folded if edits(name.casefold(), known, 1) <= 1]
    if typo:  # of a short name it need not be close by difflib's ratio: `rl`
        return folded[max(typo, key=lambda known: difflib.SequenceMatcher(None, name.casefold(), known).ratio())]
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else ""
