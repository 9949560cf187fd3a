"""Launches that many tests share: each is made once a session, recorded, and only read afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launches import CONFIGS, ROOT, STRATEGIES, TINY, Launch, free_port, has_libaio, run_ranks

from lm_scale.arguments import PretrainArguments, parse
from lm_scale.data.tokens import prepare
from lm_scale.records import Run, read


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokens are cached once a session, and no run of a test looks for a hub or a tracker."""
    os.environ["LM_SCALE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["WANDB_MODE"] = "offline"
    os.environ.pop("OMP_NUM_THREADS", None)


BUILD = "from lm_scale.engines.operators import build; build(['async_io'], print)"


def offloads_to_nvme(item: pytest.Item) -> bool:
    """Whether a test needs the operator that DeepSpeed compiles for NVMe."""
    return "strategies" in getattr(item, "fixturenames", ()) or item.path.name in ("test_nvme.py", "test_hf_trainer.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the compiled operator come last: it takes minutes, in which the others run."""
    items.sort(key=offloads_to_nvme)


@pytest.fixture(scope="session", autouse=True)
def _operator(request: pytest.FixtureRequest) -> Iterator[None]:
    """Build it beside the tests; a run that needs it before it is there waits for the builder's lock."""
    if not has_libaio() or not any(offloads_to_nvme(item) for item in request.session.items):
        yield
        return
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    builder = subprocess.Popen(
        ["nice", sys.executable, "-c", BUILD],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield
    builder.terminate()
    builder.wait()


@pytest.fixture(scope="session")
def pretrain() -> Launch:
    """Starts the real command: `pretrain("--ds_config", ..., ranks=2)`; `launcher=True` is DeepSpeed's launcher."""

    def start(
        *words: str, ranks: int = 1, timeout: float = 300, launcher: bool = False
    ) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "launch" / "pretrain.py")
        if ranks > 1 and not launcher:
            return run_ranks(script, *words, ranks=ranks, timeout=timeout)
        command = [sys.executable, script, *words]
        if launcher:
            program = str(Path(sys.executable).parent / "deepspeed")
            command = [program, "--num_gpus", str(ranks), "--master_port", str(free_port()), script, *words]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)

    return start


@pytest.fixture(scope="session")
def strategies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One `compare` of the eight shipped strategies on two CPU ranks, 50 steps each of the same samples."""
    output = tmp_path_factory.mktemp("strategies")
    prepare(parse(PretrainArguments, TINY, "", ""), None)  # a run that tokenizes has that in its peak of memory
    chosen = [name for name in STRATEGIES if name != "zero3_nvme" or has_libaio()]
    command = [sys.executable, "-m", "lm_scale.compare", *(str(CONFIGS / f"{name}.json") for name in chosen), *TINY]
    command += ["--world_size", "2", "--max_steps", "50", "--gradient_accumulation_steps", "2", "--sample_tokens", "8"]
    command += ["--output_dir", str(output), "--run_name", "all"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=output)
    assert done.returncode == 0, done.stdout + done.stderr
    (output / "all" / "stdout.txt").write_text(done.stdout)
    return {name: read(output / "all" / name) for name in chosen}
