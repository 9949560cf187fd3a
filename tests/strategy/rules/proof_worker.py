"""What DeepSpeed itself does with each case of `proof_cases.py`: one process of one CPU rank, all cases after another.

Writes one JSON object to the file named on the command line, since DeepSpeed prints to both streams: case ->
{"outcome": "ok" or "Type: message", "value": what the case's probe found}.
"""

from __future__ import annotations

import contextlib
import copy
import json
import operator
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ONE_RANK = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
os.environ |= {"DS_ACCELERATOR": "cpu", **ONE_RANK}

import deepspeed  # noqa: E402
import torch  # noqa: E402
from deepspeed.pipe import LayerSpec, PipelineModule  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfig  # noqa: E402
from proof_cases import CASES, EFFECTIVE, PROBES, Case  # noqa: E402

WIDTH = 16


def main() -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        told = {case.name: outcome(case) for case in CASES if case.how != "source"}
        told |= {name: values(document) for name, document in EFFECTIVE.items()}
    Path(sys.argv[1]).write_text(json.dumps(told), encoding="utf-8")


def outcome(case: Case) -> dict[str, Any]:
    seen = SimpleNamespace()
    document = copy.deepcopy(case.document)
    try:
        seen.config = DeepSpeedConfig(copy.deepcopy(document))
        if case.how == "configure":
            deepspeed.checkpointing.configure(None, deepspeed_config=document)
        elif case.how == "pipeline":
            pipeline(document)
        elif case.how in ("start", "step"):
            seen.engine = start(document, case.client)
            if case.how == "step":
                step(seen.engine)
        ended = "ok"
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    found: Any = seen if case.probe and ended == "ok" else None
    for part in case.probe.split(".") if found else ():
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return {"outcome": ended, "value": found}


def values(document: dict[str, Any]) -> dict[str, Any]:
    """What an engine built of the document runs with, and the bytes of its buckets during backward."""
    engine = start(copy.deepcopy(document), client=False)
    held = 0

    def measure(*_: Any) -> None:
        nonlocal held
        buffers = [bucket.buffer for bucket in engine.optimizer.ipg_buckets.values()]
        flat = [one for buffer in buffers for one in (buffer if isinstance(buffer, list) else [buffer])]
        held = max(held, sum(one.numel() * one.element_size() for one in flat))

    engine.module[0].register_full_backward_hook(measure)
    step(engine)
    found = {path: operator.attrgetter(probe)(engine._config) for path, probe in PROBES.items()}
    types = {"gradients": engine.optimizer.gradient_accumulation_dtype, "wire": engine.communication_data_type}
    return {**found, "bucket bytes a rank": held, **{name: str(kind) for name, kind in types.items()}}


def start(document: dict[str, Any], client: bool) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 1))
    optimizer = torch.optim.AdamW(model.parameters()) if client else None
    return deepspeed.initialize(model=model, optimizer=optimizer, config=document, dist_init_required=False)[0]


def step(engine: Any) -> None:
    weights = next(engine.module.parameters())
    engine.backward(engine(torch.ones(1, WIDTH, dtype=weights.dtype)).sum())
    engine.step()


def pipeline(document: dict[str, Any]) -> None:
    module = PipelineModule([LayerSpec(torch.nn.Linear, WIDTH, 1)], num_stages=1, loss_fn=lambda out, _: out.sum())
    engine = deepspeed.initialize(model=module, config=document, dist_init_required=False)[0]
    batch = (torch.ones(1, WIDTH), torch.ones(1, 1))
    engine.train_batch(iter([batch] * 2))


if __name__ == "__main__":
    main()
