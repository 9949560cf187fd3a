"""From a DeepSpeed JSON and the arguments to the JSON that runs, with where each of its values came from.

The JSON is the truth: an argument fills only what the JSON leaves out or sets to `"auto"`, and one that contradicts the
JSON is an error that names both. The keys that may be `"auto"` are those that Hugging Face's Trainer fills
(`transformers/integrations/deepspeed.py`, `HfTrainerDeepSpeedConfig`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_scale.arguments import ModelArguments, StrategyArguments, UserError
from lm_scale.strategy.batch import Batch, solve
from lm_scale.strategy.layout import PARTITION, Layout, layout, pipeline_needs
from lm_scale.strategy.load import Document, get, load, override, put, walk
from lm_scale.strategy.machine import Machine
from lm_scale.strategy.refusals import check_forms, faults, faults_of_file, refuse
from lm_scale.strategy.rules import untested
from lm_scale.strategy.rules.auto import MEANT
from lm_scale.strategy.rules.findings import Setting
from lm_scale.strategy.source import AUTO

Precision = Literal["fp32", "bf16", "fp16"]
DEFAULT_LEARNING_RATE = 5e-4
DEFAULT_WEIGHT_DECAY = 0.1
SCHEDULE_KEYS = ("total_num_steps", "warmup_num_steps", "warmup_min_lr", "warmup_max_lr")


@dataclass
class Strategy:
    """One DeepSpeed JSON as it will run. `document` is complete but for a scheduler's `"auto"` (`fill_schedule`)."""

    name: str
    path: Path
    document: Document
    sources: dict[str, str]
    layout: Layout
    batch: Batch
    zero_stage: int
    offload: str
    precision: Precision
    precision_reason: str
    reduction_precision: str
    master_weights: bool
    activation_checkpointing: bool
    warnings: list[str]

    @property
    def learning_rate(self) -> float:
        return float(get(self.document, "optimizer.params.lr"))


def resolve(
    arguments: StrategyArguments, model: ModelArguments, hidden_size: int | None, world_size: int, machine: Machine
) -> Strategy:
    """The strategy that `arguments` name, for `world_size` ranks on `machine`.

    Raises:
        UserError: the JSON is missing, malformed, has what the lint calls an error (unless `no_lint`), contradicts an
            argument, or its batch arithmetic cannot be met.
    """
    if arguments.ds_config is None:
        raise UserError("--ds_config missing: give a DeepSpeed JSON, for example ds_configs/zero2.json")
    path = Path(arguments.ds_config)
    filling = _Filling(path, override(load(path), arguments.override), arguments.override)
    setting = Setting(world_size, "cpu" if machine.device == "cpu" else "gpu")
    if not arguments.no_lint:
        refuse(path, faults_of_file(filling.document, setting))
    check_forms(path, filling.document)
    spread = layout(filling.document, world_size, path)
    batch = _batch(filling, arguments, spread.data_parallel)
    if spread.tensor_parallel > 1:
        # DeepSpeed checks it against ranks of which it counts each as data-parallel (runtime/config.py, `__init__`).
        del filling.document["train_batch_size"]
        if get(filling.document, "tensor_parallel.partition_config") is None:
            filling.set("tensor_parallel.partition_config", PARTITION, "default: heads and feed-forward are cut")
    precision, reason = _precision(filling, arguments, machine)
    _optimizer(filling, arguments)
    filling.fill("gradient_clipping", arguments.max_grad_norm, "--max_grad_norm", 1.0)
    _buckets(filling, hidden_size)
    if spread.pipeline_stages > 1:
        for key, value in pipeline_needs(filling.document, precision, path).items():
            filling.fill(key, None, "", value)
    checkpointing = "activation_checkpointing" in filling.document
    filling.refuse_remaining_auto()
    document = filling.document
    found = faults(document, setting)
    if not arguments.no_lint:
        refuse(path, found)
    stage = get(document, "zero_optimization.stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise UserError(f"{path}: zero_optimization.stage: {stage!r} is no ZeRO stage; use 0, 1, 2 or 3")
    low_precision_masters = any(
        get(document, key) for key in ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads")
    )
    return Strategy(
        name=path.stem,
        path=path,
        document=document,
        sources=filling.sources,
        layout=spread,
        batch=batch,
        zero_stage=stage,
        offload=_offload(document),
        precision=precision,
        precision_reason=reason,
        reduction_precision=_reduction_precision(document, precision),
        master_weights=not low_precision_masters,
        activation_checkpointing=checkpointing or model.gradient_checkpointing,
        warnings=_warnings(found, precision, machine),
    )


def fill_schedule(strategy: Strategy, planned_steps: int | None, warmup_steps: int) -> None:
    """Fill the `"auto"` of a `scheduler` block, which needs the length of the run.

    Raises:
        UserError: the block needs the number of steps and the run has only a time budget.
    """
    values = {
        "total_num_steps": planned_steps,
        "warmup_num_steps": max(1, warmup_steps),
        "warmup_min_lr": 0.0,
        "warmup_max_lr": strategy.learning_rate,
    }
    for key in SCHEDULE_KEYS:
        dotted = f"scheduler.params.{key}"
        if get(strategy.document, dotted) == AUTO:
            if values[key] is None:
                raise UserError(f'{strategy.path}: {dotted}: "auto" needs the number of steps; give --max_steps')
            put(strategy.document, dotted, values[key])
            strategy.sources[dotted] = "the run's length" if key.endswith("steps") else "the run's learning rate"


class _Filling:
    """A document on its way from the file's values to complete ones, and where each value came from."""

    def __init__(self, path: Path, document: Document, overrides: list[str]) -> None:
        self.path = path
        self.document = document
        overridden = {change.partition("=")[0] for change in overrides}
        self.sources = {key: "--override" if key in overridden else "file" for key, _ in walk(document)}

    def stated(self, dotted: str) -> Any:
        """The file's own value; None where it leaves the key out or at `"auto"`."""
        value = get(self.document, dotted)
        return None if value == AUTO else value

    def set(self, dotted: str, value: Any, source: str) -> None:
        put(self.document, dotted, value)
        self.sources[dotted] = source

    def agree(self, dotted: str, given: Any, argument: str) -> Any:
        """The file's value or else the argument's.

        Raises:
            UserError: both are given and differ.
        """
        stated = self.stated(dotted)
        if stated is not None and given is not None and stated != given:
            raise UserError(
                f"{self.path}: {dotted} is {stated} and {argument} is {given}; "
                f'drop one of them, or set the key to "auto", or use --override {dotted}={given}'
            )
        return given if stated is None else stated

    def fill(self, dotted: str, given: Any, argument: str, default: Any) -> None:
        if self.agree(dotted, given, argument) is None:
            self.set(dotted, default, "default")
        elif self.stated(dotted) is None:
            self.set(dotted, given, argument)

    def number(self, dotted: str) -> None:
        """See that the file's value is a whole number, `32.0` among them. Raises UserError where it is not."""
        stated = self.stated(dotted)
        if isinstance(stated, float) and stated.is_integer():
            stated = int(stated)
            put(self.document, dotted, stated)
        if stated is not None and (isinstance(stated, bool) or not isinstance(stated, int)):
            raise UserError(f"{self.path}: {dotted}: {stated!r} is no whole number")

    def refuse_remaining_auto(self) -> None:
        for dotted, value in walk(self.document):
            place = tuple(dotted.split("."))
            if value == AUTO and place[-1] not in SCHEDULE_KEYS and place not in MEANT:
                raise UserError(f'{self.path}: {dotted}: "auto" has no meaning here; write the value')


def _batch(filling: _Filling, arguments: StrategyArguments, data_parallel: int) -> Batch:
    members = (
        ("train_micro_batch_size_per_gpu", arguments.per_device_train_batch_size, "--per_device_train_batch_size"),
        ("gradient_accumulation_steps", arguments.gradient_accumulation_steps, "--gradient_accumulation_steps"),
        ("train_batch_size", arguments.train_batch_size, "--train_batch_size"),
    )
    for dotted, _, _ in members:
        filling.number(dotted)
    micro, accum, total = (filling.agree(*member) for member in members)
    try:
        batch = solve(micro, accum, total, data_parallel)
    except UserError as error:
        raise UserError(f"{filling.path}: {error}") from None
    solved = (batch.micro_batch, batch.grad_accum, batch.global_batch)
    for (dotted, given, argument), value in zip(members, solved, strict=True):
        if filling.stated(dotted) is None:
            filling.set(dotted, value, argument if given is not None else f"solved for {data_parallel} ranks")
    return batch


def _precision(filling: _Filling, arguments: StrategyArguments, machine: Machine) -> tuple[Precision, str]:
    document = filling.document
    if "bf16" not in document and "bfloat16" in document:
        document["bf16"] = document.pop("bfloat16")
    for block in ("bf16", "fp16"):
        filling.agree(f"{block}.enabled", getattr(arguments, block), f"--{block}")
    blocks: tuple[Precision, ...] = ("bf16", "fp16")
    stated = {block: get(document, f"{block}.enabled") for block in blocks}
    wanted = {block: stated[block] in (None, AUTO) and getattr(arguments, block) for block in stated}
    fixed = [block for block in stated if stated[block] is True or wanted[block]]
    if len(fixed) == 2:
        raise UserError(f"{filling.path}: bf16 and fp16 are both on; turn one of them off")
    automatic = {b for b in stated if stated[b] == AUTO and getattr(arguments, b) is None}
    precision: Precision
    if fixed:
        precision, reason = fixed[0], "the JSON says so" if stated[fixed[0]] is True else f"--{fixed[0]}"
    elif "bf16" in automatic and machine.bf16:
        precision, reason = "bf16", machine.bf16_reason
    elif "fp16" in automatic and machine.device == "gpu" and not machine.bf16:
        precision, reason = "fp16", f"{machine.bf16_reason}; fp16 with loss scaling instead"
    elif automatic:
        precision, reason = "fp32", "bf16 is off" if machine.bf16 else machine.bf16_reason
    else:
        precision, reason = "fp32", "the JSON turns on neither bf16 nor fp16"
    if precision == "fp16" and machine.device == "cpu":
        raise UserError(f"{filling.path}: fp16: DeepSpeed has no fp16 training on a CPU; use fp32 or bf16")
    for block in stated:
        if stated[block] in (None, AUTO) and (block in document or block == precision):
            filling.set(f"{block}.enabled", block == precision, reason)
    return precision, reason


def _optimizer(filling: _Filling, arguments: StrategyArguments) -> None:
    """The optimizer block, whole. torch's own fused AdamW is as fast as DeepSpeed's and needs no compiler."""
    if "optimizer" not in filling.document:
        filling.set("optimizer.type", "AdamW", "default")
        filling.set("optimizer.params.torch_adam", True, "default")
        filling.set("optimizer.params.fused", True, "default")
    elif not isinstance(filling.stated("optimizer.type"), str):
        raise UserError(f'{filling.path}: optimizer.type: missing; name the optimizer, for example "AdamW"')
    filling.fill("optimizer.params.lr", arguments.learning_rate, "--learning_rate", DEFAULT_LEARNING_RATE)
    decay = get(filling.document, "optimizer.params.weight_decay")
    if decay == AUTO or arguments.weight_decay is not None or filling.sources.get("optimizer.type") == "default":
        filling.fill("optimizer.params.weight_decay", arguments.weight_decay, "--weight_decay", DEFAULT_WEIGHT_DECAY)
    for key, default in (("betas", [0.9, 0.999]), ("eps", 1e-8)):
        if get(filling.document, f"optimizer.params.{key}") == AUTO:
            filling.set(f"optimizer.params.{key}", default, "default")
    for key in ("lr", "weight_decay"):
        value = get(filling.document, f"optimizer.params.{key}", 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{filling.path}: optimizer.params.{key}: {value!r} is no number")


def _buckets(filling: _Filling, hidden_size: int | None) -> None:
    """The sizes that Hugging Face derives from the model's hidden size, by its formulas."""
    formulas: dict[str, Callable[[int], int]] = {
        "reduce_bucket_size": lambda hidden: hidden * hidden,
        "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
    }
    for key, formula in formulas.items():
        dotted = f"zero_optimization.{key}"
        if get(filling.document, dotted) == AUTO:
            if hidden_size is None:
                raise UserError(f'{filling.path}: {dotted}: "auto" needs a model with a hidden_size; write the value')
            filling.set(dotted, formula(hidden_size), f"hidden size {hidden_size}")


def _reduction_precision(document: Document, precision: str) -> str:
    """Of the gradients on the wire."""
    return str(get(document, "communication_data_type") or precision).lower()


def _offload(document: Document) -> str:
    kinds = []
    for block, name in (("offload_optimizer", "optimizer"), ("offload_param", "param")):
        device = get(document, f"zero_optimization.{block}.device", "none")
        if device != "none":
            kinds.append(f"{name}_{device}")
    return "+".join(kinds) or "none"


def _warnings(faults: list[str], precision: str, machine: Machine) -> list[str]:
    warnings = [f"{fault} (started by --no_lint)" for fault in faults]
    warnings += [untested()] if untested() else []
    if precision == "bf16" and not machine.bf16:
        warnings.append(f"bf16 will be very slow: {machine.bf16_reason}")
    return warnings
