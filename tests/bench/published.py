"""From a published measurement to the run that it describes, as the planner's formulas see it.

The rows are text written by people: every rule here reads words, and what the row leaves open is taken as that
framework's default at the time. The rules were written with all rows in view, so that only constants are judged by a
half that did not make them. A row whose model or layout cannot be told is left out.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from lm_scale.costs.machines import Device, parse
from lm_scale.costs.memory import predict_memory
from lm_scale.costs.setup import Checkpointing, Dimensions, Setup

Row = dict[str, Any]

# (pattern, name of the table, changes): the first that matches `hardware`.
_HARDWARE = (
    (r"GB300", "b200", {"name": "gb300", "memory_bytes": 278 << 30, "fp4": 6.0}),
    (r"GB200", "b200", {"name": "gb200", "memory_bytes": 184 << 30}),
    (r"B200", "b200", {}),
    (r"H200", "h200", {}),
    (r"H100 96GB", "h100", {"memory_bytes": 94 << 30, "memory_rate": 2.4e12}),
    (r"H100", "h100", {}),
    (r"A100.*PCIe", "a100-80gb-pcie", {}),
    (r"A100.*40GB", "a100-40gb", {}),
    (r"A100", "a100-80gb", {}),
    (r"V100", "v100-32gb", {}),
    (r"A10G", "a10g", {}),
    (r"4090", "rtx4090", {}),
    (r"A6000", "a10g", {"driver_name": "RTX A6000", "memory_bytes": 47 << 30, "memory_rate": 768e9}),
    (r"3090", "a10g", {"driver_name": "RTX 3090", "memory_bytes": int(23.5 * 2**30), "memory_rate": 936e9}),
    (r"Titan RTX", "t4", {"flops_per_s": 65e12, "memory_bytes": int(23.6 * 2**30), "memory_rate": 672e9}),
)  # fmt: skip


def device_of(row: Row) -> Device | None:
    """The device of a row, with the network that its text names."""
    for pattern, name, changes in _HARDWARE:
        if re.search(pattern, row["hardware"]):
            device = dataclasses.replace(parse(name), **changes)
            if "SYS" in (row["interconnect"] or ""):  # from socket to socket
                device = dataclasses.replace(device, peer=8e9)
            network = _network(row["interconnect"] or "")
            return dataclasses.replace(device, network=network) if network else device
    return None


def _network(text: str) -> float | None:
    """Bytes a second of a node: `1600 Gbps`, `4x100Gb`, `400 Gb/s per GPU`, `8x200 Gb/s HDR IB`."""
    found = re.search(r"(?:(\d+)\s*x\s*[A-Za-z-]*\s*)?(\d+)\s*Gb", text)
    if not found:
        return None
    return int(found[1] or (8 if "per GPU" in text else 1)) * int(found[2]) * 1e9 / 8


def dimensions_of(row: Row) -> Dimensions | None:
    """The model's sizes; gated or not, tied or not, as its number of parameters tells where the row does not."""
    model = row["model"]
    if not all(model.get(key) for key in ("layers", "hidden", "vocab")):
        return None
    ffn = model.get("ffn") or 4 * model["hidden"]
    heads = model.get("heads") or max(1, model["hidden"] // 128)
    head_dim = model.get("head_dim") or model["hidden"] // heads
    kv = model.get("kv_heads") or heads
    experts = re.search(r"(\d+)\D+top-?(\d+)", str(model.get("moe", "")))
    count, active = (int(experts[1]), int(experts[2])) if experts else (1, 1)

    def parameters(gated: bool, tied: bool) -> int:
        h, f = model["hidden"], ffn
        layer = h * head_dim * (2 * heads + 2 * kv) + count * (3 if gated else 2) * h * f
        layer += 13 * h if not gated else 2 * h
        return int(model["layers"] * layer + model["vocab"] * h * (1 if tied else 2))

    stated = model.get("params")
    ties = [model["tied"]] if model.get("tied") is not None else [True, False]
    choices = [(gated, tied) for gated in (True, False) for tied in ties]
    gated, tied = min(choices, key=lambda c: abs(parameters(*c) - (stated or parameters(*c))))
    nominal = stated is None or stated % 100_000_000 == 0
    own = parameters(gated, tied)
    return Dimensions(
        layers=model["layers"],
        hidden=model["hidden"],
        heads=heads,
        key_value_heads=kv,
        head_dim=head_dim,
        intermediate=ffn,
        vocab_size=model["vocab"],
        parameters=own if nominal and abs(own / (stated or own) - 1) < 0.1 else stated,
        tied=tied,
        gated=gated,
        rms_norm=gated,
        query_key_norm="Qwen3" in model["name"],
        dropout=not gated
        and any(word in row["source"] for word in ("BigScience", "Megatron-LM", "autotuning", "lightning")),
        eager_gelu="GPT-2" in model["name"] and bool(re.search("HF|autotuning|lightning", row["source"])),
        experts=count,
        active_experts=active,
    )


def setup_of(row: Row) -> Setup | None:
    """The run of a row; None where its model, sequence or micro-batch is not told."""
    dims, device = dimensions_of(row), device_of(row)
    if dims is None or device is None or not all(row[key] for key in ("seq_len", "micro_batch", "n_gpus")):
        return None
    text = row["parallelism"]
    lower = f"{text} {row['notes']} {row['precision']}".lower()
    stage = row["zero_stage"] or 0
    fsdp = bool(re.search(r"FSDP|HSDP", text, re.IGNORECASE))
    degrees = {key: _degree(text, key) for key in ("TP", "PP", "CP")}
    micro, accum = row["micro_batch"], row["gas"] or 1
    if degrees["PP"] > 1 and accum == 1 and micro > 1:
        pieces = degrees["PP"] if fsdp else micro  # torchtitan's default until 2025: a micro-batch a stage
        micro, accum = max(1, micro // pieces), min(pieces, micro)
    shards = re.search(r"over (\d+) ranks", text)
    distributed_optimizer = row["zero_stage"] is None and "PP" in text and "Bridge" in row["source"]
    stage = 1 if distributed_optimizer else stage
    deepspeed = not fsdp and (stage > 0 or "DeepSpeed" in text) and "Megatron only" not in text
    setup = Setup(
        dims=dims,
        engine="deepspeed" if deepspeed else "torch",
        zero_stage=stage,
        world_size=row["n_gpus"],
        ranks_per_node=_ranks_per_node(row),
        tensor_parallel=degrees["TP"],
        pipeline_stages=degrees["PP"],
        virtual_stages=2 if "interleaved" in text else _degree(text, "VP"),
        context_parallel=degrees["CP"],
        expert_parallel=_degree(text, "EP"),
        shard_ranks=int(shards[1]) if shards else 8 if "HSDP" in text else None,
        sequence_parallel=(fsdp and degrees["TP"] > 1) or "Bridge" in row["source"],
        seq_len=row["seq_len"],
        micro_batch=micro,
        grad_accum=accum,
        checkpointing=_checkpointing(row, fsdp),
        activation_offload="activations" in (row["offload"] or ""),
        eager_attention=not row["flash_attn"] and not dims.gated and device.generation in ("volta", "turing", "ampere"),
        newest_attention=row["flash_attn"] not in (None, True, False),
        overlap_comm=True,
        foreach=any(name in row["source"] for name in ("fms-acceleration", "LLM_hw1", "litgpt")),
        fused_backward="opt in bwd" in text
        or "optimizer in backward" in lower
        or "act offload" in text
        or ("in-backward" in lower and "single" in text),
        compiled="compile" in text
        or distributed_optimizer
        or "torch_compile=true" in lower
        or _after(text, "+compile"),
        fused_kernels=_fused(row, lower),
        overlap_tensor="AsyncTP" in text,
        **_numerics(row, fsdp, deepspeed),
        **_offload(row["offload"] or "none", deepspeed),
    )
    setup = dataclasses.replace(setup, loss=_loss(row, setup), trainable=_trainable(row, dims))
    return _lightest(setup, capacity_of(row, device)) if row["act_ckpt"] is None and "PP" in text else setup


def _lightest(setup: Setup, capacity: int) -> Setup:
    """The least recomputation that fits, which is what whoever ran an unexplained row will have taken."""
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    tried = [dataclasses.replace(setup, checkpointing=kind) for kind in kinds]
    return next((one for one in tried if predict_memory(one).needed <= capacity), tried[-1])


def _fused(row: Row, lower: str) -> Any:
    if row["source"].startswith("stas00"):
        return "all"
    return "norms" if "foak" in lower or row["source"].startswith("Qwen f") else "none"


def _ranks_per_node(row: Row) -> int:
    if re.search("GB[23]00", row["hardware"]):
        return 64  # one NVLink domain
    return 16 if "16 per node" in row["hardware"] else 4 if re.search("4 per node", row["hardware"]) else 8


def _degree(text: str, key: str) -> int:
    found = re.search(rf"\b{key}\s*(\d+)", text, re.IGNORECASE)
    return int(found[1]) if found else 1


def _checkpointing(row: Row, fsdp: bool) -> Any:
    text = (row["act_ckpt"] or "none").lower()
    if text.startswith(("selective op", "selective layer", "per-op")):
        return "selective"
    if text.startswith("selective"):  # fms-fsdp: a share of the layers, whole layers
        return "full"
    if text.startswith("full") or "fit implies on" in text:
        return "full"
    return "full" if text == "not stated" and fsdp else "none"


def _numerics(row: Row, fsdp: bool, deepspeed: bool) -> dict[str, Any]:
    """Bytes a parameter of everything that a step keeps, from the words for the precision."""
    text = row["precision"].lower()
    products = next((kind for word, kind in _PRODUCTS if word in text), "bf16")
    if products in ("fp32", "tf32"):
        return _bytes(4, 4, 4) | {"compute_bytes": 4, "products": "tf32"}
    pure = ("pure bf16" in text and "mixed" not in text) or "bf16-true" in text or "model created in torch.bf" in text
    pure = pure or "8-bit" in text or text == "as above" or (row["task"].startswith("LoRA") and not deepspeed)
    if pure and "LoRA" in row["task"]:  # adapters are kept in fp32 and have their own weights beside the frozen ones
        return _bytes(2, 4, 2) | {"optimizer_bytes": 12, "products": products}
    if pure:
        return _bytes(2, 2, 2) | {"optimizer_bytes": 2 if "8-bit" in text else 4, "products": products}
    if deepspeed:
        return {"accumulation_bytes": 4 if "fp32 grad accumulation" in text else 2, "products": products}
    if "Megatron" in row["source"] or "Megatron" in row["parallelism"]:
        return _bytes(2, 4, 4) | {"optimizer_bytes": 12, "products": products}
    return _bytes(4, 4, 2 if "PURE" in row["precision"] or not fsdp else 4) | {"products": products}


def _bytes(parameter: int, gradient: int, reduction: int) -> dict[str, Any]:
    """Of a stored parameter, its gradient, and its gradient on the wire; without separate master weights."""
    return {
        "parameter_bytes": parameter,
        "gradient_bytes": gradient,
        "accumulation_bytes": gradient,
        "reduction_bytes": reduction,
        "master_weights": False,
    }


_PRODUCTS = (
    ("fp32/tf32", "tf32"), ("nvfp4", "fp4"), ("mxfp8", "fp8"), ("float8", "fp8"), ("fp8", "fp8"), ("bf16", "bf16"),
    ("fp16", "fp16"), ("fp32", "fp32"),
)  # fmt: skip


def _offload(text: str, deepspeed: bool) -> dict[str, Any]:
    if text == "none" or "activations cpu" in text:
        return {}
    both = "param" in text or text.startswith("cpu")
    place: dict[str, Any] = {"optimizer_device": "cpu"}
    return place | ({"parameter_device": "cpu"} if both else {})


def _loss(row: Row, setup: Setup) -> Any:
    text = f"{row['parallelism']} {row['notes']}".lower()
    if "liger" in text:
        return "liger"
    if "chunked ce" in text or _after(row["parallelism"], "+chunked CE"):
        return "chunked"
    # A compiler sees the loss where it has the whole model; torchtitan compiled the blocks alone until 2025.
    whole = "LLM_hw1" in row["source"] or ("torchtitan" in row["source"] and "202412" not in row["where"])
    if "foak" in text or (setup.compiled and whole):
        return "fused"
    if row["source"].startswith("llm-foundry"):  # its own cross entropy writes the gradient over the logits
        return "in_place"
    old = "SantaCoder" in row["model"]["name"] or (setup.dims.eager_gelu and setup.engine == "deepspeed")
    return "low_precision" if old and setup.products in ("fp16", "bf16") else "full"


def _after(text: str, rung: str) -> bool:
    """Whether a row of torchtune's cumulative ladder stands above a rung, so that it has what the rung added."""
    ladder = ("+compile", "+chunked CE", "+activation ckpt", "+opt in bwd", "+act offload", "+8bit AdamW")
    places = [place for place, name in enumerate(ladder) if name in text]
    return text.startswith("single device") and bool(places) and places[0] > ladder.index(rung)


def _trainable(row: Row, dims: Dimensions) -> int | None:
    """Of adapters of rank r on every product of a layer: r x (inputs + outputs)."""
    if "LoRA" not in row["task"]:
        return None
    rank = int(found[1]) if (found := re.search(r"r=(\d+)", row["task"])) else 8
    feed_forward = (3 if dims.gated else 2) * (dims.hidden + dims.intermediate)
    attention = 2 * (dims.hidden + dims.width) + 2 * (dims.hidden + dims.key_value_width)
    return rank * dims.layers * (feed_forward + attention)


def measured_bytes(row: Row) -> float | None:
    """The row's memory of one GPU in bytes; `GB` of nvidia-smi is GiB, `as printed` is taken as 1e9."""
    if row["mem_gb_per_gpu"] is None:
        return None
    unit = 1e9 if "1e9" in row["mem_unit"] or "as printed" in row["mem_unit"] else 2**30
    return float(row["mem_gb_per_gpu"] * unit)


def memory_kind(row: Row) -> str:
    """`process` (nvidia-smi and what looks like it), `reserved`, or `allocated`."""
    kind = row["mem_kind"] or ""
    if "reserved" in kind:
        return "reserved"
    return "allocated" if "torch" in kind else "process"


def capacity_of(row: Row, device: Device) -> int:
    """What the driver offers of the row's memory: 99 % of its nominal GiB, or the table's figure where that is less."""
    return (
        min(device.memory_bytes, int(row["gpu_mem_gb"] * 0.995 * 2**30)) if row["gpu_mem_gb"] else device.memory_bytes
    )
