"""How a JSON lays the work over the ranks: pipeline stages x replicas of the data x ranks that share each matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.strategy.load import Document, get


@dataclass(frozen=True)
class Layout:
    """`world_size = pipeline_stages * data_parallel * tensor_parallel`.

    Ranks count stages outermost and tensors innermost, as DeepSpeed's pipeline topology and its AutoTP mesh do
    (runtime/pipe/topology.py; utils/groups.py).
    """

    pipeline_stages: int
    data_parallel: int
    tensor_parallel: int

    def data_rank(self, rank: int) -> int:
        """Which share of the samples this rank reads; the stages and the tensor ranks of a replica read the same."""
        return rank // self.tensor_parallel % self.data_parallel


def layout(document: Document, world_size: int, path: Path) -> Layout:
    """The layout of `world_size` ranks under a JSON.

    Raises:
        UserError: the ranks do not divide, or the JSON asks for both pipeline and tensor parallelism.
    """
    degrees = {}
    for key, default in (("pipeline.stages", 1), ("tensor_parallel.autotp_size", 1)):
        value = get(document, key, default) or 1
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{path}: {key}: {value!r} is no number of ranks")
        if world_size % value:
            fitting = sorted({world_size // value * value, (world_size // value + 1) * value} - {0})
            raise UserError(
                f"{path}: {key}: {value} does not divide {world_size} ranks; use {' or '.join(map(str, fitting))}"
            )
        degrees[key] = value
    stages, tensor = degrees.values()
    if stages > 1 and tensor > 1:
        raise UserError(f"{path}: pipeline.stages and tensor_parallel.autotp_size: one of the two at a time")
    return Layout(stages, world_size // stages // tensor, tensor)


def pipeline_needs(document: Document, precision: str, path: Path) -> dict[str, Any]:
    """Values by dotted key that a pipeline needs where the JSON does not say.

    Raises:
        UserError: the JSON asks for what would wait for ever or train wrongly.
    """
    if any(get(document, f"zero_optimization.{block}.device", "none") != "none" for block in OFFLOADS):
        raise UserError(
            f"{path}: zero_optimization: offload in a pipeline: DeepSpeed sums its norms over the stages once a "
            "parameter group and waits for ever where a stage lacks one; drop the offload, or pipeline.stages"
        )
    needs: dict[str, Any] = {}
    if get(document, "pipeline.activation_checkpoint_interval", 0):
        # Reentrant checkpointing cuts the graph at a segment whose inputs are token ids (runtime/pipe/module.py).
        needs["pipeline.use_reentrant"] = False
    if precision == "bf16" and get(document, "zero_optimization.stage", 0) == 0:
        # Else BF16_Optimizer takes a micro-batch's gradients before the head's is there, which the loss uses outside of
        # the last stage's own forward: the head would never train (runtime/engine.py, `_backward_epilogue`).
        key = "bf16.immediate_grad_update"
        if get(document, key, True) is not True:
            raise UserError(f"{path}: {key}: a pipeline under ZeRO-0 never trains its head without; set it to true")
        needs[key] = True
    return needs


OFFLOADS = ("offload_optimizer", "offload_param")

PARTITION = {
    "use_default_specs": False,
    "layer_specs": [
        {"patterns": [r".*\.(q|k|v|gate|up)_proj\.(weight|bias)$"], "partition_type": "column"},
        {"patterns": [r".*\.(o|down)_proj\.(weight|bias)$"], "partition_type": "row"},
        {"patterns": [r".*\.(q|k)_norm\.weight$"], "partition_type": "skip", "grad_allreduce": True},
    ],
}
"""What tensor parallelism cuts where the JSON does not say: heads and feed-forward; embedding and head stay whole.

DeepSpeed's own choice follows transformers' plan, which splits the head over the ranks; the loss here multiplies with
the whole head a chunk of tokens at a time. The norms of query and key see a rank's heads alone, so that their gradients
add up over the ranks.
"""

TENSOR_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def check_tensor_parallel(config: Mapping[str, Any], document: Document, degree: int, path: Path) -> None:
    """See that a model divides over `degree` tensor ranks; `config` is transformers' own.

    Raises:
        UserError: a head count or width does not divide (it names the degrees that would), or the family's matrices
            have other names than `PARTITION` and the JSON has no partition of its own.
    """
    if degree == 1:
        return
    key = f"{path}: tensor_parallel.autotp_size: {degree}"
    if config.get("model_type") not in TENSOR_FAMILIES and document["tensor_parallel"]["partition_config"] == PARTITION:
        raise UserError(
            f"{key}: not for model_type {config.get('model_type')}, whose matrices it would not find; "
            f"it cuts {', '.join(TENSOR_FAMILIES)}, others with a partition_config of their own"
        )
    heads = config.get("num_attention_heads")
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "intermediate_size": config.get("intermediate_size"),
    }
    for name, size in sizes.items():
        if isinstance(size, int) and size % degree:
            common = math.gcd(*(size for size in sizes.values() if isinstance(size, int)))
            fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise UserError(f"{key}: does not divide the model's {name}, {size}; use one of {fitting}")
