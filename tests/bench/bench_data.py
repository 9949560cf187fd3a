"""How fast text becomes tokens and tokens become batches; prints one JSON object. A script, not a test.

    python tests/bench/bench_data.py [--pairs N] [--dataset builtin:python]

`tokenize` compares `prepare` with a given tokenizer (reading, counting, encoding, covered bytes of the evaluation
split, writing) with the tokenizer library's own `encode_batch` over the same documents, which stand in memory for it.
A pair is one of each, in alternating order, in this process and on the same cores; `cpu_time_ratio` is the same of the
processor time, which a busy machine disturbs less. `loader` is the time of
`TrainBatches.step` alone on one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lm_scale.arguments import DataArguments
from lm_scale.data.batches import Samples, TrainBatches
from lm_scale.data.corpus import open_corpus
from lm_scale.data.tokens import TokenFiles, prepare

SEQ_LEN = 512


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--dataset", default="builtin:python")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained = prepare(DataArguments(dataset=options.dataset, cache_dir=f"{folder}/trained"), None)
        result = {
            "cpus": len(os.sched_getaffinity(0)),
            "dataset": options.dataset,
            "tokenize": tokenize(options.dataset, trained, Path(folder), options.pairs),
            "loader": {
                "packed": loader(trained, packing=True),
                "unpacked": loader(trained, packing=False),
            },
        }
    print(json.dumps(result, indent=2))


def tokenize(dataset: str, trained: TokenFiles, folder: Path, pairs: int) -> dict[str, Any]:
    """Rate of `prepare` over the rate of `encode_batch`, a pair at a time."""
    documents = list(open_corpus(dataset, "text").documents())
    characters = sum(map(len, documents))
    library = Tokenizer.from_file(f"{trained.tokenizer_path}/tokenizer.json")
    arguments = DataArguments(dataset=dataset, tokenizer=str(trained.tokenizer_path), cache_dir=str(folder / "pair"))
    prepare(arguments, None)  # imports

    def ours() -> tuple[float, float]:
        shutil.rmtree(folder / "pair")
        started, cpu_started = time.perf_counter(), time.process_time()
        prepare(arguments, None)
        return time.perf_counter() - started, time.process_time() - cpu_started

    def theirs() -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), time.process_time()
        encodings = library.encode_batch(documents, add_special_tokens=False)
        assert len(encodings) == len(documents)
        return time.perf_counter() - started, time.process_time() - cpu_started

    measured = []
    for number in range(pairs):
        if number % 2:
            own, other = ours(), theirs()
        else:
            other, own = theirs(), ours()
        measured.append((own, other))
    return {
        "pairs": pairs,
        "characters": characters,
        "tokens": trained.meta["train_tokens"] + trained.meta["eval_tokens"],
        "prepare_s": spread([own[0] for own, _ in measured]),
        "encode_batch_s": spread([other[0] for _, other in measured]),
        "ratio": spread([other[0] / own[0] for own, other in measured]),
        "cpu_time_ratio": spread([other[1] / own[1] for own, other in measured]),
        "target": 0.8,
    }


def loader(files: TokenFiles, packing: bool) -> dict[str, Any]:
    """Tokens a second of one rank of two, micro-batch 8, accumulation 2, as fast as steps can be asked for."""
    batches = TrainBatches(Samples(files.train, packing, SEQ_LEN), 42, 32, 8, 2, 2, 0)
    rates = []
    for first in range(1, 501, 50):
        started = time.perf_counter()
        tokens = sum(
            batch.input_ids.size for step in range(first, first + 50) for batch in batches.step(step).micro_batches
        )
        rates.append(tokens / (time.perf_counter() - started))
    return {"seq_len": SEQ_LEN, "tokens_per_s_per_rank": spread(rates), "target": 1e6}


def spread(values: list[float]) -> dict[str, float]:
    """Median, extremes and interquartile range."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "iqr": quartiles[2] - quartiles[0],
    }


if __name__ == "__main__":
    main()
