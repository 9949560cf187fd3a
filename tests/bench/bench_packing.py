"""Useful tokens/s of packed samples against one padded document a sample, and of the chunked loss against the full one.

Real runs of the real command on one rank, interleaved; the text is the paragraphs of the interpreter's own sources.

    python tests/bench/bench_packing.py --pairs 5 > result.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lm_scale import report
from lm_scale.data.corpus import open_corpus

ROOT = Path(__file__).parents[2]
CONTENDERS = {"packed": [], "padded": ["--no_packing"], "full_loss": ["--loss", "full"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "\n\n".join(open_corpus("builtin:python", "text").documents())
        (folder / "paragraphs.txt").write_text(text, encoding="utf-8")
        for pair in range(options.pairs):
            for contender, words in CONTENDERS.items():
                rates[contender].append(useful_tokens_per_s(folder, f"{contender}{pair}", words, options.steps))
    result: dict[str, Any] = {
        "settings": vars(options),
        "useful_tokens_per_s": rates,
        "packed_over_padded": ratio(rates["packed"], rates["padded"]),
        "chunked_over_full_loss": ratio(rates["packed"], rates["full_loss"]),
    }
    print(json.dumps(result, indent=2))


def useful_tokens_per_s(folder: Path, name: str, words: list[str], steps: int) -> float:
    command = [sys.executable, "-m", "lm_scale.pretrain", "--ds_config", str(ROOT / "ds_configs" / "zero0.json")]
    command += ["--model", "mini", "--seq_len", "256", "--per_device_train_batch_size", "8", "--max_steps", str(steps)]
    command += ["--dataset", str(folder / "paragraphs.txt"), "--eval_docs", "32", "--no_save", "--sample_tokens", "0"]
    command += ["--output_dir", str(folder), "--run_name", name, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LM_SCALE_CACHE": str(folder / "cache")}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return float(report.load([folder / name])["useful_tokens_per_s"].iloc[0])


def ratio(own: list[float], its: list[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(own, its, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


if __name__ == "__main__":
    main()
