"""What a Trainer's console says of its settings: argument dumps, `Running training`, the engine, the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_scale.report.ingest import dumps, settings
from lm_scale.report.ingest.console import Segment
from lm_scale.report.rows import KEYS

ENDS = r"(?=\s|$|[,;)}\]])"  # a number that another rank's line runs into is not read
THOUSANDS = r"\d{1,3}(?:[,._' \u00a0\u202f]\d{3})+|\d{5,}"
OPTIONS = "|".join(settings.SHARDING)
PATTERNS = {
    "world_size": rf"(?<!local[_ ])\b(?:world[_ ]size|num processes)['\"]?\s*[:=]\s*(\d+){ENDS}",
    "micro_batch": r"\bInstantaneous batch size per device = ([\d,]+)\s*$",
    "global_batch": r"\bTotal train batch size \(w\. parallel, distributed & accumulation\) = ([\d,]+)\s*$",
    "grad_accum": r"\bGradient Accumulation steps = ([\d,]+)\s*$",
    "optimization_steps": r"\bTotal optimization steps = ([\d,]+)\s*$",
    "trainable": r"\bNumber of trainable parameters = ([\d,]+)\s*$",
    "params": rf"(?<![\d.,])({THOUSANDS})\s+(?:\w+\s+){{0,2}}(?:param|парам|parám|paramèt|参数|參數|パラメ|매개)",
    "model": r"'model': (\w+For(?:CausalLM|ConditionalGeneration)|\w+LMHeadModel)\(\s*$",
    "tokenizer": r"Tokenizer\w*\(name_or_path='([^']+)'",
    "dtype": r"\b(?:torch_)?dtype['\"]?\s*[=:]\s*['\"]?torch\.(bfloat16|float16|float32)\b",
    "wandb_url": r"(https?://[\w.:-]+/[\w.-]+/[\w.%-]+/runs/\w+)\s*$",
    "stage": r"\bdeepspeed\b.{0,40}?\bstage\W{0,3}([0-3])\b|\bzero(?:[ -]stage)?[ -]([0-3])\b",
    "sharding": rf"\bsharding_strategy\W{{1,4}}(?:ShardingStrategy\.)?({OPTIONS})\b",
    "fsdp": rf"^\s*((?:{OPTIONS})(?: (?:auto_wrap|offload))*)\s*$",
    "cpu_offload": r"\bcpu_offload\s*[:=]\s*(True|False)\s*$",
    "activation_checkpointing": r"(?<!_)\bactivation_checkpointing\s*[:=]\s*(True|False)\s*$",
    "deepspeed": r"(DeepSpeed info: version|DeepSpeedEngine|\[stage(?:3|_1_and_2)\.py|Persistent parameters stati)",
    "upcast": r"(Upcasted low precision parameters)",
}
"""What a line may say, by row key or by a name of this file's own; the group that matched is the value."""
COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PATTERNS.items()}
WORDS = re.compile(
    r"world|batch size|accum|optimiz|param|парам|参数|參數|パラ|매개|'model'|okenizer|dtype|/runs/|zero|deepspeed|shard"
    r"|offload|checkpointing|stage|pcasted|processes",
    re.IGNORECASE,
)
"""A line without any of these says none of it; most lines of a log are a bar's."""
MENTION = re.compile(r"deepspeed|\bfsdp\b", re.IGNORECASE)
SAYS_NOTHING = re.compile(r"real_accelerator|ds_accelerator|accelerate (?:launch|config)|^\s*\w+=|Warning")
"""Lines in which the name of an engine says nothing: a library that is installed, an argument left empty."""
WHOLE_DUMP = 5
"""A dump of this many `name=value` lines names every argument: one that is missing was lost."""
TOLD_BY_LINES = ("micro_batch", "global_batch", "grad_accum", "world_size", "params", "model", "tokenizer", "wandb_url")


@dataclass
class Facts:
    """`values` by row key, `arguments` by their own names, and by row key what the log says in two ways."""

    values: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    contradicted: dict[str, list[Any]] = field(default_factory=dict)
    optimization_steps: int | None = None


@dataclass
class _Dumps:
    """The printed settings: arguments that no dump contradicts, names that some do, DeepSpeed JSONs, lines' names."""

    arguments: dict[str, Any]
    contradicted: set[str]
    jsons: list[Mapping[str, Any]]
    names: set[str]


def facts(segments: Sequence[Segment], trained: bool) -> Facts:
    """The settings that the log states. `trained`: it reaches the training, so that an engine would have shown."""
    said = _said(segments)
    printed = _dumps(segments)
    engine = _engine(segments, said, printed, trained)
    _name_engine(printed.arguments, engine, said)
    if len(types := said.get("dtype", [])) == 1:
        printed.arguments.setdefault("dtype", types[0])
    stated = settings.from_training_arguments(printed.arguments)
    if engine == "fsdp":
        said.pop("trainable", None)  # counted on one rank's shard
    elif "params" not in said and "trainable" in said:
        said["params"] = said["trainable"]
    sources = [stated, *map(settings.from_deepspeed_json, printed.jsons)]
    sources += [{key: _typed(key, value)} for key in TOLD_BY_LINES for value in said.get(key, [])]
    if engine == "deepspeed" and not printed.jsons:
        stages = {int(stage) for stage in said.get("stage", [])}
        sources += [{"zero_stage": stage, "strategy": f"zero{stage}"} for stage in stages]
    found = _agreed(sources)
    found.arguments = printed.arguments
    for name in printed.contradicted:
        found.contradicted.setdefault(name, ["two values in its dumps"])
    if engine == "none" and (world_size := found.values.get("world_size")):
        found.values["strategy"] = "single" if world_size == 1 else "ddp"
    found.values["master_weights"] = found.values.get("master_weights", _master_weights(engine, found.values, said))
    steps = {settings.whole(step) for step in said.get("optimization_steps", [])}
    found.optimization_steps = steps.pop() if len(steps) == 1 else None
    found.values = {key: value for key, value in settings.known(found.values).items() if key in KEYS}
    return found


def _said(segments: Sequence[Segment]) -> dict[str, list[str]]:
    """What whole lines say by the patterns, every distinct value once. A line that the file's end cuts says nothing."""
    said: dict[str, list[str]] = {}
    last = segments[-1] if segments else None
    for segment in segments:
        if not WORDS.search(segment.text) or (segment is last and not segment.ended):
            continue
        for name, pattern in COMPILED.items():
            for match in pattern.finditer(segment.text):
                value = next((group for group in match.groups() if group), None)
                if value is not None and value not in said.setdefault(name, []):
                    said[name].append(value)
    return said


def _dumps(segments: Sequence[Segment]) -> _Dumps:
    names: set[str] = set()
    parts: list[Mapping[str, Any]] = []
    jsons: list[Mapping[str, Any]] = []
    for name, value in dumps.assignments(segments):
        if name in settings.ARGUMENTS:
            parts.append({name: value})
            names.add(name)
    fsdp_configs = [value for part in parts if isinstance(value := part.get("fsdp_config"), Mapping)]
    for segment in segments:
        text = segment.text
        if "{" in text and ("batch_size" in text or "zero_opt" in text or "fsdp" in text):
            for found in dumps.dicts(text):
                if "zero_optimization" in found:
                    jsons.append(found)
                elif "per_device_train_batch_size" in found:
                    parts.append({name: value for name, value in found.items() if name in settings.ARGUMENTS})
                elif any(name.startswith("fsdp_") for name in found):
                    fsdp_configs.append(found)
    jsons += [value for part in parts if isinstance(value := part.get("deepspeed"), Mapping)]
    arguments, contradicted = dumps.merged([part for part in parts if "fsdp_config" not in part])
    if fsdp_configs:
        arguments["fsdp_config"] = {name: value for config in fsdp_configs for name, value in config.items()}
    if len(jsons) == 1 or all(one == jsons[0] for one in jsons[1:]):
        jsons = jsons[:1]
    return _Dumps(arguments, contradicted, jsons, names)


def _engine(segments: Sequence[Segment], said: dict[str, list[str]], printed: _Dumps, trained: bool) -> str | None:
    """`deepspeed`, `fsdp`, or `none` where a log that reaches the training shows neither; None if it is not known."""
    config, sharding = printed.arguments.get("deepspeed"), settings.fsdp_options(printed.arguments.get("fsdp"))
    if printed.jsons or config or "deepspeed" in said:
        return "deepspeed"
    if sharding or "sharding" in said or "fsdp" in said:
        return "fsdp"
    if "deepspeed" in printed.arguments and config is None and sharding == []:
        return "none"
    if "stage" in said and any("deepspeed" in segment.text.lower() for segment in segments):
        return "deepspeed"
    whole_dump = len(printed.names) >= WHOLE_DUMP or "fsdp_config" in printed.names or _ends_a_dump(segments)
    lost = whole_dump and not {"deepspeed", "fsdp"} <= printed.names
    named = any(MENTION.search(one.text) and not SAYS_NOTHING.search(one.text) for one in segments)
    told = trained and "world_size" in said  # the start of the log is there, and an engine would show in it
    return "none" if told and not lost and not named else None


def _ends_a_dump(segments: Sequence[Segment]) -> bool:
    """Whether a dataclass's last line stands here without its first: the log was cut within it."""
    before = ""
    for segment in segments:
        if segment.text.endswith("("):
            return False
        if segment.text.startswith(")") and before.endswith(",") and "=" in before:
            return True
        before = segment.text
    return False


def _name_engine(arguments: dict[str, Any], engine: str | None, said: dict[str, list[str]]) -> None:
    """Put the engine that the log shows into the arguments, so that one reading of them decides everything."""
    options = arguments.pop("fsdp", None)
    config = arguments.pop("deepspeed", None)
    if engine == "deepspeed":
        arguments["deepspeed"] = config or True
    elif engine == "fsdp":
        lines, sharding = said.get("fsdp", []), said.get("sharding", [])
        if not options and len(lines) == 1:
            options = lines[0]
        elif not options:  # the sharding alone does not say whether there is offload
            options = sharding[0].lower() if sharding else True
            offloads = said.get("cpu_offload", [])
            arguments["fsdp_cpu_offload"] = offloads[0] if len(offloads) == 1 else None
        arguments["fsdp"] = options
        if len(switches := said.get("activation_checkpointing", [])) == 1:
            arguments.setdefault("fsdp_config", {})["activation_checkpointing"] = switches[0] == "True"
    elif engine == "none":
        arguments |= {"deepspeed": None, "fsdp": ""}


def _agreed(sources: Iterable[Mapping[str, Any]]) -> Facts:
    """The values that every source that states them states alike."""
    candidates: dict[str, list[Any]] = {}
    for source in sources:
        for key, value in settings.known(source).items():
            if value not in candidates.setdefault(key, []):
                candidates[key].append(value)
    found = Facts()
    for key, values in candidates.items():
        if len(values) == 1:
            found.values[key] = values[0]
        else:
            found.contradicted[key] = values
    return found


def _master_weights(engine: str | None, values: Mapping[str, Any], said: dict[str, list[str]]) -> bool | None:
    """Without DeepSpeed or FSDP the optimizer steps on the weights as they are; FSDP may have cast them up."""
    if "upcast" in said:
        return True
    if engine != "none" or values.get("precision") is None:
        return None
    types = {settings.DTYPES[name] for name in said.get("dtype", [])}
    return types == {"fp32"} if len(types) == 1 else None


def _typed(key: str, value: str) -> Any:
    if key in ("model", "tokenizer", "wandb_url"):
        return value
    return settings.whole(re.sub(r"[,._' \u00a0\u202f]", "", value))
