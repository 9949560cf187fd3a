"""From the command to the end of the first step, beside a bare DeepSpeed script: interleaved pairs, operators warm.

python tests/bench/bench_startup.py --pairs 6 > result.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

BARE = """
import sys, time
import deepspeed, torch
from transformers import AutoConfig, AutoModelForCausalLM
import json
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed()
preset = json.load(open(sys.argv[-3]))
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(preset.pop("model_type"), **preset))
ids = torch.randint(0, 8192, (64, 256))
engine, _, loader, _ = deepspeed.initialize(
    model=model, model_parameters=model.parameters(), config=sys.argv[-2],
    training_data=[{"input_ids": row, "labels": row} for row in ids],
)
batch = next(iter(loader))
engine.backward(engine(**batch).loss)
engine.step()
if torch.distributed.get_rank() == 0:
    open(sys.argv[-1], "w").write(str(time.time()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--model", default="small")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"lm_scale": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bare.py").write_text(BARE)
        for pair in range(options.pairs + 1):
            order = [lm_scale, bare] if pair % 2 else [bare, lm_scale]
            for contender in order:
                taken = contender(folder, f"{contender.__name__}{pair}", options.model)
                if pair:  # the first of each fills caches
                    seconds[contender.__name__].append(taken)
    differences = [own - its for own, its in zip(seconds["lm_scale"], seconds["bare"], strict=True)]
    result: dict[str, Any] = {
        "settings": vars(options),
        "median_s": {key: statistics.median(values) for key, values in seconds.items()},
        "lm_scale_minus_bare_s": {"median": statistics.median(differences), "all": differences},
        "seconds": seconds,
    }
    print(json.dumps(result, indent=2))


def launch(words: list[str]) -> float:
    """Start two ranks; the wall-clock time at which the command began."""
    begin = time.time()
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", *words]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return begin


def lm_scale(folder: Path, name: str, model: str) -> float:
    """Seconds from the command to the record of the first step."""
    words = [str(ROOT / "launch" / "pretrain.py"), "--ds_config", str(ROOT / "ds_configs" / "zero2.json")]
    words += ["--model", model, "--seq_len", "256", "--per_device_train_batch_size", "4", "--max_steps", "1"]
    words += ["--no_save", "--sample_tokens", "0", "--output_dir", str(folder), "--run_name", name]
    begin = launch(words)
    records = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return float(next(record["time"] for record in records if record["kind"] == "step")) - begin


def bare(folder: Path, name: str, model: str) -> float:
    """Seconds from the command to the end of the first step of a script of a few lines."""
    document = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    document |= {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    document["optimizer"]["params"] |= {"lr": 5e-4, "weight_decay": 0.1}
    document |= {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
    (folder / "bare.json").write_text(json.dumps(document))
    preset = ROOT / "lm_scale" / "models" / "presets" / f"{model}.json"
    end = folder / f"{name}.time"
    begin = launch([str(folder / "bare.py"), str(preset), str(folder / "bare.json"), str(end)])
    return float(end.read_text()) - begin


if __name__ == "__main__":
    main()
