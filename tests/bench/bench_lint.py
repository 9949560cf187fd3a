"""The lint of one JSON and of a hundred, beside a bare start of Python: wall and CPU seconds, interleaved.

python tests/bench/bench_lint.py --rounds 7 > result.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    configs = sorted(str(path) for path in (ROOT / "ds_configs").glob("*.json"))
    folder = Path(tempfile.mkdtemp())
    for number in range(100):
        shutil.copy(configs[number % len(configs)], folder / f"{number}.json")
    lint = [sys.executable, "-m", "lm_scale.lint"]
    commands = {
        "python": [sys.executable, "-c", ""],
        "one": [*lint, configs[0]],
        "hundred": [*lint, str(folder)],
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            taken[name].append(seconds(command))
    result = {
        name: {
            "wall_s": statistics.median(wall for wall, _ in times),
            "cpu_s": statistics.median(cpu for _, cpu in times),
        }
        for name, times in taken.items()
    }
    shutil.rmtree(folder)
    print(json.dumps(result, indent=1))


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one run of the command."""
    begin, before = time.perf_counter(), os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begin, cpu


if __name__ == "__main__":
    main()
