"""The faults of a DeepSpeed JSON, each with what DeepSpeed 0.19.8 does and what the lint says: `proofs.json`.

Its `numbered` cases are of 47 rules drawn up by reading DeepSpeed's sources, `found` are the rules found since, `sound`
is what DeepSpeed takes and trains, so that the rest fails of its fault alone; `effective` are files whose values after
defaults are held against the engine built of them. A file is `changes` to `BASE`, in which null deletes a key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Case:
    """What DeepSpeed does, and what the lint says.

    `how` far DeepSpeed is taken: it reads the file (`config`), builds an engine (`start`), trains (`step`, `pipeline`),
    sets up its checkpointing (`configure`). `outcome` is searched in `ok` or in `Type: message`; where it is `ok`,
    `probe` finds `value` in the config or the engine. With `source`, which is for what cannot run on one CPU rank, the
    outcome is searched in the source of the module `probe`: the guard itself must stand there. `rule` at `path` is the
    lint's finding; an empty one is a fault that no JSON shows. `client`: the code brings an optimizer.
    """

    name: str
    document: dict[str, Any]
    how: Literal["config", "start", "step", "pipeline", "configure", "source"]
    outcome: str
    rule: str = ""
    path: str = ""
    severity: str = "error"
    probe: str = ""
    value: Any = None
    client: bool = False
    device: Literal["cpu", "gpu"] | None = None
    number: int | None = None


ADAM: dict[str, Any] = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}}
BASE: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0, "optimizer": ADAM}
CPU: dict[str, Any] = {"device": "cpu", "pin_memory": False}
BF16: dict[str, Any] = {"enabled": True}


def base(**changes: Any) -> dict[str, Any]:
    """A file that DeepSpeed takes, with some top-level keys set, or deleted where None."""
    return {key: value for key, value in {**BASE, **changes}.items() if value is not None}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return base(zero_optimization={"stage": stage, **keys})


def adam(**parameters: Any) -> dict[str, Any]:
    return {"type": "AdamW", "params": {**ADAM["params"], **parameters}}


def scheduler(name: str, **parameters: Any) -> dict[str, Any]:
    return base(scheduler={"type": name, "params": parameters})


def _cases(kind: str) -> list[Case]:
    return [Case(document=base(**row.pop("changes")), **row) for row in TABLE[kind]]


TABLE: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("proofs.json").read_text(encoding="utf-8"))
NUMBERED, FOUND, SOUND = (_cases(kind) for kind in ("numbered", "found", "sound"))
CASES = NUMBERED + FOUND + SOUND
EFFECTIVE = {row["name"]: base(**row["changes"]) for row in TABLE["effective"]}
PROBES = {
    "gradient_clipping": "gradient_clipping",
    "zero_optimization.stage": "zero_config.stage",
    "zero_optimization.reduce_bucket_size": "zero_config.reduce_bucket_size",
    "zero_optimization.overlap_comm": "zero_config.overlap_comm",
    "zero_optimization.sub_group_size": "zero_config.sub_group_size",
    "zero_optimization.stage3_prefetch_bucket_size": "zero_config.prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold": "zero_config.param_persistence_threshold",
    "zero_optimization.stage3_max_live_parameters": "zero_config.max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance": "zero_config.max_reuse_distance",
}
"""A path of the JSON -> where DeepSpeed's config has its value."""
