"""One rank of `test_partitioned.py`: what ZeRO-3 makes of a model, its weights and its loss. Rank 0 writes a JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from lm_scale.models.build import build
from lm_scale.models.loss import CausalLMLoss, choose_loss
from lm_scale.models.presets import ModelSource

VOCAB, SEED = 320, 7
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama tied": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "llama padded": {**LLAMA, "pad_token_id": 5},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "qwen3 tied": {**LLAMA, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, "tie_word_embeddings": False},
    "qwen3_moe": {**LLAMA, "model_type": "qwen3_moe", **EXPERTS},
    "mixtral tied": {**LLAMA, **MIXTRAL, "tie_word_embeddings": True},
}
DS_CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 0.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
}


def source(name: str) -> ModelSource:
    return ModelSource(name, "config", Path(f"{name}.json"), CONFIGS[name])


def whole(name: str, where: ModelSource | None = None) -> Any:
    return build(where or source(name), VOCAB, 16, None, SEED)[0]


def partitioned(name: str, where: ModelSource | None = None, ds_config: dict[str, Any] = DS_CONFIG) -> Any:
    return build(
        where or source(name),
        VOCAB,
        16,
        None,
        SEED,
        partition=lambda: deepspeed.zero.Init(config_dict_or_path=ds_config),
        gather=lambda parameters: deepspeed.zero.GatheredParameters(parameters, modifier_rank=0),
    )[0]


def differing(model: Any, reference: Any) -> list[str]:
    """Parameters and buffers of `model` that are not, bit by bit, those of `reference`."""
    names = []
    expected = dict(reference.named_parameters())
    assert list(expected) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert parameter.ds_shape == expected[name].shape
        assert parameter.shape != expected[name].shape, f"{name} is not partitioned"
        with deepspeed.zero.GatheredParameters([parameter]):
            if parameter.dtype != expected[name].dtype or not torch.equal(parameter, expected[name]):
                names.append(name)
    buffers = dict(reference.named_buffers())
    names += [name for name, buffer in model.named_buffers() if not torch.equal(buffer, buffers[name])]
    return names


def loss_and_gradients(name: str, rank: int, ranks: int) -> dict[str, float]:
    """The largest differences of one ZeRO-3 step's loss and gradients from one process that sees all samples."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (2 * ranks, 17), generator=generator)
    inputs, labels = ids[:, :-1], ids[:, 1:].clone()
    labels[0, :5] = -100
    count = int((labels != -100).sum())
    reference = whole(name)
    expected = CausalLMLoss(reference, "full")(inputs, labels) / count
    expected.backward()

    model = partitioned(name)
    assert choose_loss(model, "auto", "cpu").mode == "chunked"
    module = CausalLMLoss(model, "chunked")
    engine, *_ = deepspeed.initialize(model=module, config=DS_CONFIG)
    mine = slice(2 * rank, 2 * rank + 2)
    results = {}
    for step in range(2):  # from the second step on ZeRO-3 prefetches by the trace of the first
        loss = engine(inputs[mine], labels[mine]) * ranks / count
        engine.backward(loss)
        gathered = loss.detach().clone()
        torch.distributed.all_reduce(gathered)
        results[f"loss {step}"] = abs(gathered.item() / ranks - expected.item()) / expected.item()
        gradients = dict(reference.named_parameters())
        worst = 0.0
        for parameter_name, parameter in module.model.named_parameters():
            ours = deepspeed.utils.safe_get_full_grad(parameter)
            theirs = gradients[parameter_name].grad
            worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
        results[f"gradients {step}"] = worst
        engine.optimizer.zero_grad()
    with torch.no_grad():
        evaluated = engine(inputs[mine], labels[mine])
    results["gradient of an evaluation"] = float(evaluated.requires_grad)
    return results


def main(out: Path) -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    # Only inference uses this operator, and building it takes over a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    record: dict[str, Any] = {"initialized": {}, "loss": {}, "continued": {}}
    for name in CONFIGS:
        record["initialized"][name] = differing(partitioned(name), whole(name))
    rounded = whole("qwen3")
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    in_bf16 = partitioned("qwen3", ds_config={**DS_CONFIG, "bf16": {"enabled": True}})
    record["initialized"]["qwen3 in bf16"] = differing(in_bf16, rounded)
    for name in ("qwen3_moe", "gpt2"):
        directory = out.parent / f"saved {name}"
        if rank == 0:
            saved = whole(name)
            with torch.no_grad():
                for parameter in saved.parameters():
                    parameter.mul_(1.5)
            saved.save_pretrained(directory)
        torch.distributed.barrier()
        where = ModelSource(name, "directory", directory, json.loads((directory / "config.json").read_text()))
        record["continued"][name] = differing(partitioned(name, where), whole(name, where))
    for name in ("qwen3", "qwen3 tied", "gpt2"):
        record["loss"][name] = loss_and_gradients(name, rank, ranks)
    if rank == 0:
        out.write_text(json.dumps(record))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
