"""Writes the samples beside it: runs whose numbers are formulas of the iteration, in the projects' line formats.

Megatron needs GPUs and cannot run here. The formats are those of Megatron-LM core_r0.10 (`training_log`,
`evaluate_and_print_results`, `_print_args`, `report_memory`), of Megatron-DeepSpeed's `training_log` as BigScience ran
it, and of GPT-NeoX 2.0's `megatron/logging.py`.
"""

from __future__ import annotations

import datetime
from pathlib import Path

START = datetime.datetime(2025, 4, 13, 23, 41, 0)


def seconds(iteration: int) -> float:
    """What the iteration took: the first ones are slow."""
    return (3.0 if iteration <= 3 else 0.5) + 0.01 * (iteration % 7)


def loss(iteration: int) -> float:
    return 4.0 + 6.0 / iteration


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def arguments(values: dict[str, object], width: int = 48) -> list[str]:
    return [f"  {name} {'.' * (width - len(name))} {value}" for name, value in sorted(values.items())]


def megatron_lm(iterations: int = 100, every: int = 10) -> list[str]:
    """4 ranks, tensor parallel 2, fp16: the first two iterations are skipped; evaluated every 50."""
    lines = [
        "using world size: 4, data-parallel size: 2, context-parallel size: 1, "
        "hierarchical context-parallel sizes: Nonetensor-model-parallel size: 2, encoder-tensor-model-parallel size: 0,"
        " pipeline-model-parallel size: 1,"
        " encoder-pipeline-model-parallel size: 0",
        "using torch.float16 for parameters ...",
        "------------------------ arguments ------------------------",
    ]
    lines += arguments(
        {
            **{"world_size": 4, "data_parallel_size": 2, "tensor_model_parallel_size": 2, "context_parallel_size": 1},
            **{"pipeline_model_parallel_size": 1, "micro_batch_size": 4, "global_batch_size": 16, "seq_length": 512},
            **{"train_iters": iterations, "log_interval": every, "rampup_batch_size": None, "fp8": None, "seed": 1234},
            **{"params_dtype": "torch.float16", "fp16": True, "bf16": False, "lr": 0.0001, "lr_decay_style": "cosine"},
            **{"optimizer": "adam", "recompute_granularity": "selective", "num_experts": None, "eval_interval": 50},
            **{"tokenizer_type": "GPT2BPETokenizer", "use_distributed_optimizer": False, "clip_grad": 1.0},
        }
    )
    lines += [
        "-------------------- end of arguments ---------------------",
        "INFO:megatron.core.num_microbatches_calculator:setting number of microbatches to constant 2",
        " > number of parameters on (tensor, pipeline) model parallel rank (1, 0): 62160000",
        " > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 62160000",
        f"[before the start of training step] datetime: {START} ",
    ]
    clock, skipped_iterations = START, {1, 2}
    for last in range(every, iterations + 1, every):
        span = range(last - every + 1, last + 1)
        advanced = [one for one in span if one not in skipped_iterations]
        spent = sum(map(seconds, span))
        clock += datetime.timedelta(seconds=spent)
        line = f" [{clock:%Y-%m-%d %H:%M:%S}] iteration {last:8d}/{iterations:8d} | consumed samples: {last * 16:12d} |"
        line += f" elapsed time per iteration (ms): {spent / every * 1000:.1f} |"
        line += (
            f" throughput per GPU (TFLOP/s/GPU): {120 / spent:.1f} | learning rate: {1e-4 * last / iterations:.6E} |"
        )
        line += f" global batch size: {16:5d} | lm loss: {mean([loss(one) for one in advanced]):.6E} |"
        line += f" loss scale: 4096.0 | grad norm: {100 / last:.3f} | num zeros: 71.0 |"
        line += f" number of skipped iterations: {every - len(advanced):3d} | number of nan iterations: {0:3d} |"
        lines.append(line)
        if last == every:
            lines += [
                f"[Rank {rank}] (after {last} iterations) memory (MB) | allocated: 1464.33154296875 | max allocated: "
                f"{peak} | reserved: 1576.0 | max reserved: {reserved}"
                for rank, peak, reserved in ((0, 2464.3408203125, 2576.0), (1, 2360.25, 2480.0))
            ]
        if last % 50 == 0:
            lines += ["(min, max) time across ranks (ms):", "    evaluate .......................: (3274.73, 3274.73)"]
            value = f"lm loss value: {loss(last) + 0.5:.6E} | lm loss PPL: 7E+03"
            lines += _rule(f" validation loss at iteration {last} | {value} | ")
            clock += datetime.timedelta(seconds=3)
    lines.append(f"[after training is done] datetime: {clock:%Y-%m-%d %H:%M:%S} ")
    for name, value in (("validation", 4.75), ("test", 4.5)):
        result = f"lm loss value: {value:.6E} | lm loss PPL: 1E+02"
        lines += _rule(f" validation loss at iteration {iterations} on {name} set | {result} | ")
    return lines


def megatron_deepspeed(iterations: int = 30) -> list[str]:
    """BigScience's lines: seconds instead of milliseconds, the batch grows, one line an iteration."""
    lines, consumed = [], 0
    for one in range(1, iterations + 1):
        batch = 16 if one <= 10 else 32
        consumed += batch
        lines.append(
            f"[default7]: iteration {one:8d}/{iterations:8d} | consumed samples: {consumed:12d} | consumed tokens:"
            f" {consumed * 2048:12d} | elapsed time per iteration (s): {seconds(one):.2f} | learning rate: 6.000E-05 |"
            f" global batch size: {batch:5d} | lm loss: {loss(one):.6E} | grad norm: 1.250 | num zeros: 0.0 |"
            f" number of skipped iterations: {0:3d} | number of nan iterations: {0:3d} |"
            f" samples per second: {batch / seconds(one):.3f} | TFLOPs: {12 / seconds(one):.2f} |"
        )
        lines.append("[default7]:time (ms)")
    lines.append(f"[default7]:[after training is done] datetime: {START}")
    lines += [f"[default7]:{line}" for line in _rule(
        " validation loss at the end of training for val data | lm loss value: 4.312500E+00 | lm loss PPL: 7.462E+01 | "
    )]  # fmt: skip
    return lines


def gpt_neox(iterations: int = 50, every: int = 5) -> list[str]:
    lines = ["-------------------- arguments --------------------"]
    values = {
        **{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2},
        **{"seq_length": 2048, "model_parallel_size": 1, "pipe_parallel_size": 1, "precision": "bfloat16"},
        **{"log_interval": every, "lr_decay_style": "cosine", "seed": 1234, "optimizer_type": "Adam", "lr": 0.0006},
    }
    for line in arguments(values, 32):
        lines.append(line + "." * (69 - len(line)) + "updated")
    lines.append("---------------- end of arguments ----------------")
    for last in range(every, iterations + 1, every):
        spent = sum(seconds(one) for one in range(last - every + 1, last + 1))
        lines.append(
            f" samples/sec: {32 * every / spent:.3f} | iteration {last:8d}/{iterations:8d} | elapsed time per iteration"
            f" (ms): {spent / every * 1000:.1f} | learning rate: 6.000E-04 | approx flops per GPU: 150.3TFLOPS |"
            f" lm_loss: {mean([loss(one) for one in range(last - every + 1, last + 1)]):.6E} |"
            f" number of skipped iterations: {0:3d} | number of nan iterations: {0:3d} |"
        )
    lines += _rule(
        " validation results at the end of training for val data | lm_loss value: 4.25E+00 | lm_loss_ppl value: 70.1 | "
    )
    return lines


def _rule(text: str) -> list[str]:
    return ["-" * len(text), text, "-" * len(text)]


if __name__ == "__main__":
    for write in (megatron_lm, megatron_deepspeed, gpt_neox):
        Path(__file__).with_name(f"{write.__name__}.log").write_text("\n".join(write()) + "\n", encoding="utf-8")
