"""The table of all keys that the installed DeepSpeed knows: `python -m lm_scale.engines.known_keys > known_keys.json`.

Derived from DeepSpeed itself: its pydantic models field by field (blocks that refuse unknown keys), the places that
read plain dicts (`reads`: blocks that ignore them), the keys it refuses as removed, the keys that nothing reads
(`unread`), and the signatures of the optimizers and schedulers that it builds by name. What cannot be derived
stands in `remarks` alone, with evidence. `lm_scale/strategy/known.py` reads the result, which ships.
"""

from __future__ import annotations

import enum
import inspect
import json
import logging
import os
import sys
import types
import typing
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
import pydantic
import torch
from deepspeed.module_inject.autotp_config import AutoTPConfig
from deepspeed.runtime import config as ds_config
from deepspeed.runtime.data_pipeline.data_routing.basic_layer import RandomLayerTokenDrop
from deepspeed.runtime.data_pipeline.data_routing.scheduler import RandomLTDScheduler
from deepspeed.runtime.data_pipeline.data_sampling import data_sampler, variable_batch_size_and_lr
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.engine import PipelineEngine

from lm_scale.engines.known_keys.optimizers import optimizers, schedulers
from lm_scale.engines.known_keys.places import UNKNOWN, Instance, Place, Places
from lm_scale.engines.known_keys.reads import DEPTH, ROOT, Read, Walk
from lm_scale.engines.known_keys.remarks import BOUNDS, CHOICES, EXTRA_KEYS, INERT, OPEN, REPLACED, TYPES
from lm_scale.engines.known_keys.unread import unread

Entry = dict[str, Any]
JSON_TYPES = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", type(None): "null"}


def table() -> dict[str, Any]:
    """What `lm_scale/strategy/known.py` reads."""
    walk, config = _walked()
    removed: dict[Place, str] = {(key,): why for key, why in ds_config._REMOVED_TOP_LEVEL_CONFIG_KEYS.items()}
    removed |= {("zero_optimization", key): why for key, why in ds_config._REMOVED_ZERO_CONFIG_KEYS.items()}
    blocks: dict[Place, Entry] = {(): {"strict": False, "keys": {}}}
    for place, model in walk.models.items():
        _model_block(blocks, place, model)
    for place, read in sorted(walk.reads.items()):
        if not any(place[: len(start)] == start for start in [*removed, *OPEN]) or place in OPEN:
            _lax_key(blocks, place, read)
    for place, entry in EXTRA_KEYS.items():
        _block(blocks, place[:-1])["keys"][place[-1]] = dict(entry)
    for place in OPEN:
        _block(blocks, place)["open"] = True
    _mark_inert(blocks, config)
    for place in blocks:
        if place and place[-1] != "*":
            blocks[place[:-1]]["keys"].setdefault(place[-1], {})["block"] = True
    return {
        "deepspeed_version": deepspeed.__version__,
        "torch_version": torch.__version__.partition("+")[0],
        "blocks": {".".join(place): block for place, block in sorted(blocks.items())},
        "removed": {".".join(place): why for place, why in sorted(removed.items())},
        "replaced": {".".join(place): how for place, how in sorted(REPLACED.items())},
        "optimizers": optimizers(),
        "schedulers": schedulers(),
    }


def _walked() -> tuple[Walk, Instance]:
    """All reads of the JSON, from where it comes in and from where a parsed block is handed on.

    `depth=DEPTH` follows no call: the engine's constructor, which both hand the JSON to, reads nothing of it.
    """
    walk, config, root = Walk(), Instance(ds_config.DeepSpeedConfig), Places(frozenset([()]))
    walk.enter(ds_config.DeepSpeedConfig.__init__, {"self": config, "config": root, "mpu": None, "mesh_device": None})
    walk.attributes = config.attributes
    walk.enter(deepspeed.initialize, {"config": root}, depth=DEPTH)
    walk.enter(PipelineEngine.__init__, {"self": Instance(PipelineEngine)}, depth=DEPTH)
    efficiency = config.attributes["data_efficiency_config"]
    sampler = data_sampler.DeepSpeedDataSampler
    walk.enter(sampler.__init__, {"self": Instance(sampler), "data_efficiency_config": efficiency})
    variable = variable_batch_size_and_lr.get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed
    walk.enter(variable, {"engine": UNKNOWN})
    dropping = Places(frozenset([("data_efficiency", "data_routing", "random_ltd")]))
    walk.enter(RandomLTDScheduler.__init__, {"self": Instance(RandomLTDScheduler), "config": dropping})
    walk.enter(RandomLayerTokenDrop.init_config, {"self": Instance(RandomLayerTokenDrop), "config": dropping})
    walk.enter(
        DeepSpeedEngine.random_ltd_initialize, {"self": Instance(DeepSpeedEngine), "random_ltd_config": dropping}
    )
    partition = Places(frozenset([("tensor_parallel", "partition_config")]))
    walk.enter(AutoTPConfig.from_dict.__func__, {"cls": AutoTPConfig, "config_dict": partition})
    return walk, config


def _block(blocks: dict[Place, Entry], place: Place) -> Entry:
    return blocks.setdefault(place, {"strict": False, "keys": {}})


def _lax_key(blocks: dict[Place, Entry], place: Place, read: Read) -> None:
    """A key read from a plain dict; the keys of a pydantic block are the model's."""
    block = _block(blocks, place[:-1])
    if place[-1] == "*":
        block["open"] = True
    if block["strict"] or place[-1] == "*":
        return
    entry = block["keys"].setdefault(place[-1], {})
    entry["at"] = read.at
    if read.default is not UNKNOWN and not isinstance(read.default, dict):
        entry["default"] = read.default
    kinds = TYPES.get(place) or ([JSON_TYPES[type(read.default)]] if type(read.default) in JSON_TYPES else [])
    if place in TYPES or (kinds and kinds not in (["dict"], ["null"])):
        nullable = read.default is None and "null" not in kinds and "dict" not in kinds
        entry["types"] = kinds + ["null"] * nullable
    if place in CHOICES:
        entry["choices"] = CHOICES[place]


def _model_block(blocks: dict[Place, Entry], place: Place, model: type[pydantic.BaseModel]) -> None:
    """A pydantic model's fields, by every name that it accepts."""
    strict = model.model_config.get("extra") == "forbid"
    file = str(Path(inspect.getfile(model)).relative_to(ROOT))
    keys: dict[str, Entry] = {}
    blocks[place] = {"strict": strict, "at": f"{file}:{model.__name__}", "keys": keys}
    for name, field in model.model_fields.items():
        entry = _field(model, field)
        entry |= BOUNDS.get((*place, name), {})
        if (*place, name) in CHOICES:
            entry["choices"] = CHOICES[(*place, name)]
        nested = _nested_model(field.annotation)
        names = [name, *([field.alias] if field.alias else [])]
        for spelled in names:
            keys[spelled] = entry | ({"alias": names[1 - names.index(spelled)]} if len(names) > 1 else {})
            if nested is not None:
                _model_block(blocks, (*place, spelled), nested)


def _field(model: type[pydantic.BaseModel], field: Any) -> Entry:
    """One field: types, default, bounds, choices, and what replaces it where it is deprecated."""
    entry: Entry = {"types": _types(field.annotation)}
    default = field.get_default(call_default_factory=True)
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, int) and type(default) not in JSON_TYPES:
        default = int(default)  # DeepSpeed's pp_int, which prints itself with commas
    if type(default) in JSON_TYPES and not isinstance(default, dict):
        entry["default"] = default
    choices = _choices(field.annotation)
    if choices:
        entry["choices"] = choices
    for constraint in field.metadata:
        entry |= {bound: getattr(constraint, bound) for bound in ("ge", "gt", "le", "lt") if hasattr(constraint, bound)}
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("deprecated"):
        entry["deprecated"] = {"new": extra.get("new_param", ""), "acts": extra.get("set_new_param", True)}
    return entry


def _types(annotation: Any) -> list[str]:
    """The JSON types of an annotation, before pydantic's coercions; none where no JSON value can be an instance."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _types(part)]
    if origin is typing.Literal:
        return sorted({JSON_TYPES[type(value)] for value in typing.get_args(annotation)})
    if annotation in (object, Any):
        return ["any"]
    if origin is not None:
        annotation = origin
    if inspect.isclass(annotation):
        if issubclass(annotation, pydantic.BaseModel):
            return ["dict"]
        if issubclass(annotation, enum.Enum):
            return ["choice"]
        if issubclass(annotation, Path):
            return ["str"]
        if issubclass(annotation, tuple):
            return ["list"]
    return [JSON_TYPES[annotation]] if annotation in JSON_TYPES else []


def _choices(annotation: Any) -> list[Any]:
    """The values of an enum or a Literal, also as one of a Union's parts."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        return [value for part in typing.get_args(annotation) for value in _choices(part)]
    return []


def _nested_model(annotation: Any) -> type[pydantic.BaseModel] | None:
    for part in [annotation, *typing.get_args(annotation)]:
        if inspect.isclass(part) and issubclass(part, pydantic.BaseModel):
            return part
    return None


def _mark_inert(blocks: dict[Place, Entry], config: Instance) -> None:
    """Keys that are parsed and act on nothing: those that nothing reads, then the remarks."""
    reasons: dict[Place, str] = {}
    for attribute, value in config.attributes.items():
        if isinstance(value, Places) and unread(attribute, "runtime/config.py"):
            reasons |= dict.fromkeys(value.places, "nothing in DeepSpeed reads it")
    for place, block in blocks.items():
        if block["strict"]:
            file = block["at"].partition(":")[0]
            for key, entry in block["keys"].items():
                if "deprecated" not in entry and "alias" not in entry and unread(key, file):
                    reasons[(*place, key)] = "nothing in DeepSpeed reads it"
    for place, why in (reasons | INERT).items():
        blocks[place[:-1]]["keys"][place[-1]]["inert"] = why


def text(found: dict[str, Any]) -> str:
    """The table as JSON, a key a line."""
    lines = [f' "{name}": {json.dumps(found[name])},' for name in ("deepspeed_version", "torch_version")]
    lines.append(' "blocks": {')
    for place, block in found["blocks"].items():
        head = {name: value for name, value in block.items() if name != "keys"}
        lines.append(f'  {json.dumps(place)}: {json.dumps(head)[:-1]}, "keys": {{')
        keys = [f"   {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(block["keys"].items())]
        lines += [",\n".join(keys), "  }},"]
    lines[-1] = "  }}\n },"
    for name in ("removed", "replaced", "optimizers", "schedulers"):
        entries = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in found[name].items()]
        lines += [f' "{name}": {{', ",\n".join(entries), " },"]
    lines[-1] = " }"
    return "{\n" + "\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # DeepSpeed's remarks on this machine go to stdout
    sys.stdout.write(text(table()))
