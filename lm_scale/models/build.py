"""A causal LM built from its source: the architecture by transformers, the weights from the seed or a directory."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import prevent_arange_dtype_change

from lm_scale.arguments import UserError
from lm_scale.models.initialize import Gather, initialize
from lm_scale.models.presets import ModelSource, check_seq_len, resolve_vocab_size

Partition = Callable[[], AbstractContextManager[Any]]
"""Makes a context that splits each parameter over the ranks as it is made (`zero.Init`); the engine has one."""


def build(
    source: ModelSource,
    vocab_size: int,
    seq_len: int,
    attn_implementation: str | None,
    seed: int,
    dtype: torch.dtype = torch.float32,
    partition: Partition | None = None,
    gather: Gather | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """The model in training mode, and one line for every choice that the user should know of.

    Args:
        source: what `--model` names.
        vocab_size: tokens of the tokenizer.
        seq_len: positions of one sample.
        attn_implementation: None for sdpa where the model has it, else eager.
        seed: the weights' of a new model.
        dtype: of the parameters.
        partition, gather: for a model that does not fit one rank (ZeRO-3); both or none. All ranks must call.

    Raises:
        UserError: the vocabulary, the sequence, the attention or the weights do not fit the model.
    """
    check_seq_len(source, seq_len)
    config = make_config(source, vocab_size)
    notes = _dropout_notes(config)
    try:
        if source.kind == "directory" and partition is None:
            model = _from_directory(source, dtype, attn_implementation)
        else:
            model = _empty(config, dtype, attn_implementation, partition)
    except (ValueError, ImportError) as error:  # how transformers refuses an attention by name
        if attn_implementation is None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--attn_implementation {attn_implementation}: not for model {source.name}: {reason}") from None
    if source.kind != "directory":
        initialize(model, seed, gather)
    elif partition is not None:
        _fill_from_directory(model, source, dtype, gather)
    attention = model.config._attn_implementation
    if attn_implementation is None and attention != "sdpa":
        notes.append(f"attention: {attention}, because {type(model).__name__} has no sdpa")
    return model.train(), notes


def make_config(source: ModelSource, vocab_size: int) -> PretrainedConfig:
    """transformers' config of the model; a preset's with `vocab_size` rows.

    Raises:
        UserError: transformers does not know the model type or refuses a value; the vocabulary is too small.
    """
    values = copy.deepcopy(source.config)
    if source.kind == "preset":
        values["vocab_size"] = vocab_size
    else:
        resolve_vocab_size(source, vocab_size)
    model_type = values.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # an unknown type, or a value that the config class refuses in one of its own ways
        reason = "has code of its own, which is not run" if "auto_map" in values else " ".join(str(error).split())[:200]
        raise UserError(f"--model {source.path}: model_type {model_type}: {reason}") from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"--model {source.path}: model_type {model_type} has no causal language model in transformers")
    return config


def _empty(
    config: PretrainedConfig, dtype: torch.dtype, attention: str | None, partition: Partition | None
) -> PreTrainedModel:
    """The model with no weights drawn yet, each parameter split over the ranks as it is made."""
    with ExitStack() as stack:
        stack.enter_context(no_init_weights())
        if partition:
            stack.enter_context(prevent_arange_dtype_change())  # zero.Init would round RoPE's frequencies to bf16
            stack.enter_context(partition())
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=attention
        )
    model.tie_weights()
    return cast(PreTrainedModel, model)


def _from_directory(source: ModelSource, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    try:
        model, loaded = cast(Any, AutoModelForCausalLM).from_pretrained(
            source.path, dtype=dtype, attn_implementation=attention, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {source.path}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    for problem in ("missing_keys", "mismatched_keys"):
        if loaded[problem]:
            first = sorted(str(key) for key in loaded[problem])[0]
            raise UserError(
                f"--model {source.path}: {len(loaded[problem])} {problem.replace('_', ' ')} in its weights ({first}); "
                "they do not belong to its config.json"
            )
    return cast(PreTrainedModel, model)


def _fill_from_directory(
    model: PreTrainedModel, source: ModelSource, dtype: torch.dtype, gather: Gather | None
) -> None:
    """Partitioned parameters, one after another, from a whole model that the first rank alone reads to its host memory.

    transformers reads it, because a directory's names and shapes need not be the model's (experts stored one by one).
    """
    distributed = torch.distributed.is_initialized()
    first = not distributed or torch.distributed.get_rank() == 0
    whole = _from_directory(source, dtype, None).state_dict() if first else {}
    for name, parameter in model.named_parameters():
        with torch.no_grad(), gather([parameter]) if gather else nullcontext():
            if first:
                parameter.copy_(whole[name])
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved:
            if first:
                buffer.copy_(whole[name])
            if distributed:
                torch.distributed.broadcast(buffer, src=0)


def _dropout_notes(config: PretrainedConfig) -> list[str]:
    rates = {
        key: value
        for key, value in config.to_dict().items()
        if re.search(r"(?<!summary_first_)dropout|pdrop$", key) and isinstance(value, float) and value > 0
    }
    if not rates:
        return []
    named = ", ".join(f"{key} {value}" for key, value in sorted(rates.items()))
    return [f"dropout ({named}) draws other numbers at another world size: losses of unlike runs will differ"]
