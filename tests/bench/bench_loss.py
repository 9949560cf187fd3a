"""Peak memory and time of the chunked loss against the full one, on a CPU with one thread. Prints one JSON object.

    python tests/bench/bench_loss.py [--tokens 2048] [--pairs 5] [--vocabularies 8192 50257 151936]

Memory: one forward and backward pass in a fresh process each; the kernel's high-water mark of resident pages over what
was resident before, which is the loss's own. Time: interleaved pairs in one process, as the ratio chunked / full of CPU
seconds (with one thread: the time on an idle machine); which of a pair goes first alternates. Logits are as at the
start of training: a head of standard deviation 0.02 on normed states.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lm_scale.costs.head import chunk_rows, chunked_loss_bytes, full_loss_bytes
from lm_scale.models.loss import IGNORED, chunked_cross_entropy


def full(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = nn.functional.linear(hidden, weight).float()
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return chunked_cross_entropy(hidden, weight, None, labels)


PATHS = {"full": full, "chunked": chunked}


def problem(tokens: int, hidden: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, hidden, generator=generator)).requires_grad_()
    return states, weight, torch.randint(0, vocabulary, (tokens,), generator=generator)


def step(path: str, states: Tensor, weight: Tensor, labels: Tensor) -> float:
    states.grad = weight.grad = None
    begin = time.process_time()
    loss = PATHS[path](states, weight, labels)
    (loss / len(labels)).backward()
    return time.process_time() - begin


def status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak_bytes(path: str, tokens: int, hidden: int, vocabulary: int) -> int:
    """Of this process, in one step: call it in a fresh one."""
    torch.set_num_threads(1)
    step(path, *problem(64, 64, 64))  # loads the libraries' code
    given = problem(tokens, hidden, vocabulary)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again (proc(5))
    before, mapped = status_bytes("VmRSS"), status_bytes("RssFile")
    step(path, *given)
    return status_bytes("VmHWM") - before - (status_bytes("RssFile") - mapped)


def measured_peak(path: str, tokens: int, hidden: int, vocabulary: int) -> int:
    # A fixed threshold hands every large tensor back when it is freed; glibc's own moves while the process runs.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--peak", path, str(tokens), str(hidden), str(vocabulary)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def ratios(pairs: int, tokens: int, hidden: int, vocabulary: int) -> dict[str, object]:
    given = problem(tokens, hidden, vocabulary)
    for path in PATHS:
        step(path, *given)
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for pair in range(pairs):
        for path in sorted(PATHS, reverse=bool(pair % 2)):
            seconds[path].append(step(path, *given))
    quotients = sorted(one / other for one, other in zip(seconds["chunked"], seconds["full"], strict=True))
    return {
        "chunked_cpu_s": statistics.median(seconds["chunked"]),
        "full_cpu_s": statistics.median(seconds["full"]),
        "ratio_median": statistics.median(quotients),
        "ratio_min": quotients[0],
        "ratio_max": quotients[-1],
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 50257, 151936])
    parser.add_argument("--peak", nargs=4, metavar=("PATH", "TOKENS", "HIDDEN", "VOCABULARY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_bytes(arguments.peak[0], *map(int, arguments.peak[1:])))
        return
    torch.set_num_threads(1)
    tokens, hidden = arguments.tokens, arguments.hidden
    rows = chunk_rows(tokens, "cpu")
    results = []
    for vocabulary in arguments.vocabularies:
        peaks = {path: measured_peak(path, tokens, hidden, vocabulary) for path in PATHS}
        predicted = full_loss_bytes(tokens, vocabulary) - chunked_loss_bytes(tokens, vocabulary, hidden, 4, rows)
        saved = peaks["full"] - peaks["chunked"]
        results.append(
            {
                "vocabulary": vocabulary,
                "peak_full_bytes": peaks["full"],
                "peak_chunked_bytes": peaks["chunked"],
                "saved_bytes": saved,
                "predicted_saved_bytes": predicted,
                "saved_over_predicted": saved / predicted,
                **ratios(arguments.pairs, tokens, hidden, vocabulary),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(
        json.dumps({"tokens": tokens, "hidden": hidden, "chunk_rows": rows, "threads": 1, "results": results}, indent=2)
    )


if __name__ == "__main__":
    main()
