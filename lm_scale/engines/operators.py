"""DeepSpeed's C++ operators: which ones a strategy needs, and building each once, said and without a stale lock.

DeepSpeed compiles an operator at its first use, on every rank, silently. A build that was killed leaves a `lock` file
in the extension's folder on which the next build waits for ever. Here the first rank of a host builds under a lock of
the kernel's, which a kill releases; whoever holds it knows that a `lock` file beside it is nobody's.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from lm_scale.arguments import UserError
from lm_scale.strategy.load import get
from lm_scale.strategy.resolve import Strategy

MINUTES = {"async_io": 3, "cpu_adam": 1, "fused_adam": 1, "cpu_adagrad": 1, "cpu_lion": 1}


def needed(strategy: Strategy) -> list[str]:
    """Names of the operators that DeepSpeed would compile for this strategy."""
    document = strategy.document
    operators = []
    kind = str(get(document, "optimizer.type", "")).lower()
    on_cpu = "optimizer_cpu" in strategy.offload or "optimizer_nvme" in strategy.offload
    if kind in ("adam", "adamw") and not get(document, "optimizer.params.torch_adam", False):
        operators.append("cpu_adam" if on_cpu else "fused_adam")
    if kind in ("lion", "adagrad") and on_cpu:
        operators.append(f"cpu_{kind}")
    if "nvme" in strategy.offload:
        operators.append("async_io")
    return operators


def build(operators: list[str], say: Callable[[str], None]) -> None:
    """Build and load each operator; call it on one rank of a host before the others use them.

    Raises:
        UserError: an operator cannot be built here (no compiler, a library missing); it names DeepSpeed's reason.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    for name in operators:
        builder = get_accelerator().create_op_builder(_builder_name(name))
        if builder is None:
            continue
        folder = Path(_get_build_directory(name, verbose=False))
        with open(folder / ".lm_scale_lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "lock").unlink(missing_ok=True)
            if not (folder / f"{name}.so").exists():
                minutes = MINUTES.get(name, 1)
                say(f"compiling DeepSpeed's operator {name}, once on this machine, about {minutes} min ...")
            try:
                builder.load(verbose=False)
            except (
                Exception
            ) as error:  # a compiler that fails, a toolkit or a library that is not there: each raises its own
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                raise UserError(f"DeepSpeed's operator {name} cannot be built here: {reason}") from None


def _builder_name(operator: str) -> str:
    names = {"async_io": "AsyncIOBuilder", "cpu_adam": "CPUAdamBuilder", "fused_adam": "FusedAdamBuilder"}
    return names.get(operator) or f"CPU{operator.removeprefix('cpu_').capitalize()}Builder"
