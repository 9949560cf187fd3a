"""Parity: whether two records of the same training tell the same losses and gradient norms, step by step.

How far two correct runs may be apart. Layouts add the same numbers in another order and round each product in their own
precision. With unit roundoff u, a sum of n terms in another order moves by u sqrt(n) of itself: rounding errors have
random signs (Higham & Mary 2019, SIAM J. Sci. Comput. 41, A2815; the certain bound is u n). A gradient is a sum over
the T labels of the global batch, of terms that went through D products one after another, whose roundings add up as
sqrt(D); the update carries its error into the weights, and after t steps t such errors, of random signs again, stand
side by side:

    e(t) = C u sqrt(T D t)   sums in fp32            e(t) = C u sqrt(D t)   products in bf16 or fp16

of the value itself, where C = 4 is four standard deviations. Below fp32 the products round far more than their sums in
fp32, so T does not count. The loss is a milder sum (its terms are all positive) and held to the same. Nothing here is
fitted to measured runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_scale.records import Run

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""Half the distance of 1 from the next number above (IEEE 754; bfloat16 has 8 significant bits, fp16 11)."""

STANDARD_DEVIATIONS = 4
PRODUCTS_OF_A_LAYER = 7
"""One after another: query/key/value, scores, values, output, gate/up, down; norms and sums together as one more."""

COMPARED = ("loss", "grad_norm")

SAME = (
    *(("data", "fingerprint"), ("batch", "global_batch"), ("batch", "seq_len"), ("batch", "packing")),
    *(("model", "params"), ("optimizer", "type"), ("optimizer", "learning_rate"), ("schedule", "type")),
)
MATHEMATICS = {"betas", "eps", "weight_decay", "momentum", "nesterov", "dampening", "amsgrad"}
"""Parameters of an optimizer that change what it computes; the others choose who computes it."""


@dataclass(frozen=True)
class Verdict:
    """How a run stands to the reference: `largest` is the greatest relative difference by key over `steps` steps.

    `reason` is empty where it agrees; else it says at which step it parts and by how much, or why there is nothing to
    compare.
    """

    name: str
    steps: int
    largest: dict[str, float]
    allowed: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        return not self.reason


def step_tolerance(precision: str, labels: int, layers: int) -> float:
    """The relative difference that one step may make; see the module.

    Args:
        precision: of the products, the lower of the two runs'.
        labels: of the global batch.
        layers: of the model.
    """
    products = PRODUCTS_OF_A_LAYER * layers + 1
    terms = products * (labels if precision == "fp32" else 1)
    return STANDARD_DEVIATIONS * UNIT_ROUNDOFF[precision] * math.sqrt(terms)


def judge(reference: Run, run: Run) -> Verdict:
    """Whether `run` agrees with `reference`, an fp32 run from the same weights on the same samples."""
    if reason := _incomparable(reference, run):
        return Verdict(run.path.name, 0, {}, 0.0, reason)
    return compare(run.path.name, reference.of("step"), run.of("step"), _allowed(reference, run))


def compare(
    name: str, reference: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], step_allowed: float
) -> Verdict:
    """Compare two series of step records; the first step is allowed `step_allowed`, step t that times sqrt(t)."""
    largest = dict.fromkeys(COMPARED, 0.0)
    reason = ""
    for number, (theirs, ours) in enumerate(zip(reference, steps, strict=False), 1):
        for key in COMPARED:
            difference, bound = _relative(ours[key], theirs[key]), step_allowed * math.sqrt(number)
            largest[key] = max(largest[key], difference)
            if not reason and difference > bound:
                values = " against ".join("none" if one is None else f"{one:.9g}" for one in (ours[key], theirs[key]))
                reason = f"parts at step {number}: {key} {values}, {difference:.1e} apart where {bound:.1e} is allowed"
    if not reason and len(steps) < len(reference):
        reason = f"stopped after {len(steps)} of {len(reference)} steps"
    return Verdict(name, min(len(reference), len(steps)), largest, step_allowed, reason)


def describe(verdicts: Sequence[Verdict]) -> str:
    """A line a run: it agrees and how closely, or where it parts."""
    width = max(len(verdict.name) for verdict in verdicts)
    lines = ["loss and gradient norm, step by step, against native PyTorch in fp32 (largest relative difference):"]
    for verdict in verdicts:
        distances = ", ".join(f"{key} {value:.1e}" for key, value in verdict.largest.items())
        allowed = f"{verdict.steps} steps; {verdict.allowed:.1e} x sqrt(step) is allowed"
        told = f"agrees: {distances} ({allowed})" if verdict.agrees else verdict.reason
        lines.append(f"{verdict.name:{width}}  {told}")
    return "\n".join(lines)


def _relative(ours: float | None, theirs: float | None) -> float:
    """Infinite where one of them is not known or no number."""
    if ours is None or theirs is None or not (math.isfinite(ours) and math.isfinite(theirs)):
        return math.inf
    return abs(ours - theirs) / max(abs(theirs), 1e-30)


def _allowed(reference: Run, run: Run) -> float:
    labels = max((step["useful_tokens"] for step in reference.of("step")), default=1)
    config = (reference.header.get("model") or {}).get("config") or {}
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 1
    return step_tolerance(run.header["numerics"]["precision"], labels, layers)


def _incomparable(reference: Run, run: Run) -> str:
    """Why the two series cannot be compared; empty where they can."""
    if not run.of("step"):
        return f"{run.status}: {run.last_error or 'no step was made'}"
    if not reference.of("step"):
        return f"the reference has no steps ({reference.status}: {reference.last_error})"
    for block, key in SAME:
        theirs, ours = reference.header[block][key], run.header[block][key]
        if theirs != ours:
            return f"{block}.{key} is {ours}, the reference's is {theirs}: not the same training"
    ours, theirs = (one.header["optimizer"]["params"] for one in (run, reference))
    for key in sorted({*ours, *theirs} & MATHEMATICS):
        if ours.get(key) != theirs.get(key):
            values = f"is {ours.get(key)}, the reference's is {theirs.get(key)}"
            return f"optimizer.params.{key} {values}: not the same training"
    return ""
