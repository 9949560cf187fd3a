"""The row: one run as the report shows it. Owns its keys, their order, their types and what a flag code means."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypedDict


class Flag(TypedDict):
    """Why a row must not be compared as it stands, or why a number of its source was not believed."""

    code: str
    message: str


@dataclass(kw_only=True)
class Row:
    """One run. The fields are the keys of `--format json`, in their order; None is what is not known.

    Bytes are integers, seconds floats; rates are per second over all ranks unless the name says `_per_rank`; losses
    are nats a token. `path` and the keys after it are additions to the contract's keys.
    """

    name: str
    owner: str | None = None
    source: str
    status: str | None = None
    last_error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    engine: str | None = None
    strategy: str | None = None
    zero_stage: int | None = None
    offload: str | None = None
    world_size: int | None = None
    nodes: int | None = None
    data_parallel: int | None = None
    pipeline_stages: int | None = None
    tensor_parallel: int | None = None
    micro_batch: int | None = None
    grad_accum: int | None = None
    global_batch: int | None = None
    seq_len: int | None = None
    packing: bool | None = None
    precision: str | None = None
    reduction_precision: str | None = None
    master_weights: bool | None = None
    activation_checkpointing: bool | None = None
    torch_compile: bool | None = None
    attn_implementation: str | None = None
    loss: str | None = None
    model: str | None = None
    params: int | None = None
    dataset: str | None = None
    tokenizer: str | None = None
    seed: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    lr_schedule: str | None = None
    steps: int | None = None
    planned_steps: int | None = None
    skipped_steps: int | None = None
    runtime_s: float | None = None
    step_s: float | None = None
    step_s_iqr: float | None = None
    steps_per_s: float | None = None
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_per_rank: float | None = None
    useful_tokens_per_s: float | None = None
    samples_seen: int | None = None
    tokens_seen: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_bits_per_byte: float | None = None
    grad_norm: float | None = None
    peak_device_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    device_memory_bytes: int | None = None
    peak_host_bytes: int | None = None
    predicted_device_bytes: int | None = None
    predicted_host_bytes: int | None = None
    model_flops_per_s: float | None = None
    mfu: float | None = None
    link_bytes_per_s: float | None = None
    speedup: float | None = None
    efficiency: float | None = None
    delta_loss: float | None = None
    device: str | None = None
    wandb_url: str | None = None
    flags: list[Flag] = field(default_factory=list)
    path: str | None = None
    host: str | None = None
    created_at: str | None = None
    data_fingerprint: str | None = None
    last_record_at: str | None = None
    delta_loss_equal_steps: float | None = None
    delta_loss_equal_tokens: float | None = None
    delta_loss_equal_time: float | None = None
    runs: int | None = None
    failed_runs: int | None = None
    tokens_per_s_spread: float | None = None
    samples_per_s_spread: float | None = None
    step_s_spread: float | None = None
    eval_loss_spread: float | None = None

    def flag(self, code: str, message: str) -> None:
        """Add a flag; its code must be one of `MEANINGS`."""
        assert code in MEANINGS, code
        self.flags.append(Flag(code=code, message=message))


MEANINGS = {
    "differs_model": "another model than the baseline's",
    "differs_data": "another text than the baseline's",
    "differs_tokenizer": "another tokenizer: losses do not compare, bits per byte do",
    "differs_seq_len": "another sequence length than the baseline's",
    "differs_packing": "packed on one side, padded on the other: compare useful tokens/s",
    "differs_global_batch": "another global batch than the baseline's",
    "differs_precision": "products in another precision than the baseline's",
    "differs_reduction_precision": "gradients reduced in another precision than the baseline's",
    "differs_master_weights": "fp32 master weights on one side only",
    "differs_checkpointing": "activations recomputed on one side only",
    "differs_compile": "compiled on one side only",
    "differs_attention": "another attention implementation than the baseline's",
    "differs_loss": "another way to compute the loss than the baseline's",
    "differs_optimizer": "another optimizer than the baseline's",
    "differs_learning_rate": "another learning rate than the baseline's",
    "differs_lr_schedule": "another learning-rate schedule than the baseline's",
    "differs_planned_steps": "another planned length than the baseline's",
    "differs_tokens": "trained on another number of tokens: compare losses at equal tokens",
    "differs_seed": "another seed than the baseline's",
    "differs_device": "another device than the baseline's",
    "overlapping_run": "another run used the same host at the same time",
    "device_shared": "another process used the device during the run",
    "too_few_steps": "at most 2 steps after warm-up: no rates",
    "loss_not_finite": "the training loss became infinite or not a number",
    "mfu_above_1": "more FLOP/s than the device's peak: the peak is wrong, or was measured on a busy machine",
    "planned_not_completed": "the source's own rates count work that was planned and not done: recomputed",
    "micro_step_bar": "the source's progress bar counts micro-batches: divided by the accumulation",
    "evaluation_in_runtime": "the source's runtime includes evaluation or saving",
    "inverted_rate": "the source gives seconds a step under the name of steps a second: turned round",
    "model_size_not_peak": "the source's memory is the model's size and no peak: left out",
    "log_incomplete": "the source stops before the end of training: totals are not known",
    "no_step_times": "the source has no step times: step time and rates are over its whole runtime",
    "train_loss_whole_run": "the training loss is the mean over the whole run, not over its end",
    "rate_contradicts_runtime": "throughput and runtime contradict each other",
    "samples_contradict": "samples seen are not steps times the global batch",
    "memory_below_states": "less memory than the model's weights and optimizer states take: no peak",
    "constant_measure": "the same measured value in unlike runs: hardly measured",
    "source_disagrees": "the source says two things of this: left out",
    "from_notes": "a value is from a hand-written note",
    "rates_of_part": "the rates are of the steps that the source times, not of its whole runtime",
    "peak_uncertain": "the source's peak memory is of some ranks, of a part of the run, or not surely of a device",
    "several_runs": "the source holds several runs",
    "resumed": "stopped and resumed: the steps after that are a second warm-up, and in the rates",
}
"""What each flag code says of the row that has it. Codes are stable."""

KEYS = tuple(key.name for key in dataclasses.fields(Row))


@functools.cache
def kinds() -> dict[str, type]:
    """The type of each key's known values: int, float, bool, str, or list for the flags."""
    hints = typing.get_type_hints(Row)
    return {key: _known(hints[key]) for key in KEYS}


def checked(**values: Any) -> Row:
    """A row of values that were read from a file.

    Raises:
        ValueError: a value is not of its key's type; the text names the key.
    """
    return Row(**{key: typed(key, value, kinds()[key]) for key, value in values.items()})


def typed(key: str, value: Any, kind: type) -> Any:
    """`value` if it is a `kind` or None; a whole number is a float too, and a float that is not finite is not known.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return None
    if kind is float and value in ("nan", "inf", "-inf"):  # how the record writes them
        return None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{key}: {value!r} is no {kind.__name__}")


def _known(hint: Any) -> type:
    if typing.get_origin(hint) is list:
        return list
    inner = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return inner[0] if inner else hint  # type: ignore[no-any-return]
