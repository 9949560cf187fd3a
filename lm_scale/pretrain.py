"""`pretrain`: one run of one strategy. Its story from top to bottom: check, start, train, finish.

Started by `deepspeed launch/pretrain.py`, `torchrun`, `srun`, or plain `python` for one rank. Nothing heavy is imported
before the arguments and the JSON are known to be right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_scale.arguments import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    PretrainArguments,
    UserError,
    parse,
    run_command,
)
from lm_scale.models.presets import check_seq_len, load_config
from lm_scale.records import now

if TYPE_CHECKING:
    from lm_scale.engines.session import Session
    from lm_scale.training.limits import StopRequest

MOST_SKIPS = 50
EXIT_STATUS = {"completed": 0, "budget": 0, "interrupted": EXIT_INTERRUPTED}


@dataclass(frozen=True)
class Trained:
    """How training ended: the run's status, its last step, and the budget's clock then."""

    status: str
    step: int
    elapsed_s: float


def main(argv: Sequence[str]) -> int:
    """Pretrain a causal language model under one DeepSpeed JSON."""
    arguments = parse(PretrainArguments, argv, "pretrain", (main.__doc__ or "").strip())

    from lm_scale.engines.launch import Launch
    from lm_scale.engines.nvme import check_nvme
    from lm_scale.engines.process import prepare_environment
    from lm_scale.engines.run_directory import check_output
    from lm_scale.strategy.layout import check_tensor_parallel
    from lm_scale.strategy.machine import detect
    from lm_scale.strategy.native import check_expressible
    from lm_scale.strategy.resolve import resolve
    from lm_scale.training.capture import Capture
    from lm_scale.training.limits import check
    from lm_scale.training.progress import Progress

    check(arguments)
    machine = detect()
    process = prepare_environment(machine)
    source = load_config(arguments.model)
    check_seq_len(source, arguments.seq_len)
    strategy = resolve(arguments, arguments, source.text_config.get("hidden_size"), process.world_size, machine)
    tensor_ranks = strategy.layout.tensor_parallel
    check_tensor_parallel(source.text_config, strategy.document, tensor_ranks, strategy.path)
    if arguments.engine == "torch":
        check_expressible(strategy)
    else:
        check_nvme(strategy)
    if process.rank == 0:
        check_output(arguments)
    with Capture(process.rank) as capture:
        progress = Progress(capture.terminal, visible=process.rank == 0)
        return run(Launch(arguments, machine, process, source, strategy, capture, progress))


def run(launch: Any) -> int:
    """Start, train, finish; whatever ends a run early is in its record when this returns."""
    from lm_scale.data.tokens import prepare

    data = prepare(launch.arguments, launch.capture.terminal if launch.process.local_rank == 0 else None)
    launch.progress.say(
        "starting torch and DeepSpeed ..." if launch.arguments.engine == "deepspeed" else "starting torch ..."
    )

    from lm_scale.engines.failure import record_failure
    from lm_scale.engines.process import leave_group
    from lm_scale.engines.session import begin, build_engine
    from lm_scale.training.limits import StopRequest

    try:
        session = begin(launch, data)
    except UserError:
        raise
    except Exception:
        print(launch.capture.early_text(), file=launch.capture.terminal)
        raise
    try:
        build_engine(session)
        trained = train(session, StopRequest())
        if trained.status in ("completed", "budget"):
            finish(session, trained)
        session.end(trained.status)
    except UserError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return record_failure(session, error)
    failed = "error: " if trained.status == "diverged" else ""
    launch.progress.say(f"{failed}{trained.status}: {session.run_dir}")
    leave_group()
    return EXIT_STATUS.get(trained.status, EXIT_FAILED)


def train(session: Session, stop: StopRequest) -> Trained:
    """The loop: step, measure, record, and now and then evaluate and save."""
    arguments, limits, engine, meter = session.launch.arguments, session.limits, session.engine, session.meter
    step, elapsed_s, skips = session.first_step, session.elapsed_s, 0
    status = limits.status(step, elapsed_s) if step else None  # a resumed run may have nothing left to do
    peak = session.launch.strategy.learning_rate
    session.launch.progress.begin(limits, step, arguments.logging_steps)
    if step == 0:
        session.update(started_at=now())
    meter.restart(elapsed_s)
    while status is None:
        step += 1
        clock = meter.clock()
        batches = session.batches.step(step)
        result = engine.train_step(batches, limits.learning_rate(peak, step, elapsed_s), clock)
        measured = meter.finish(clock, result.loss_sum, batches.label_count, stop.received)
        elapsed_s = measured.elapsed_s
        values = {
            "step": step,
            "grad_norm": result.grad_norm,
            "lr": engine.lr(),
            "samples": batches.samples,
            "tokens": batches.tokens,
            "useful_tokens": batches.label_count,
            "skipped": result.skipped,
            **measured.values,
        }
        session.record("step", **values)
        session.launch.progress.step(values)
        skips = skips + 1 if result.skipped else 0
        status = _status(session, values, skips, measured.stop_requested)
        if result.skipped and status is None:  # it is done again on the same samples, at the lower loss scale
            step -= 1
            continue
        if step == 1:
            session.measure_machine()
            meter.pause()
        if status is None and arguments.eval_steps and step % arguments.eval_steps == 0:
            evaluate(session, step, elapsed_s, final=False)
            meter.pause()
        due = arguments.save_steps and (step % arguments.save_steps == 0 or status == "interrupted")
        if due and status != "diverged" and not result.skipped:
            save(session, step, elapsed_s)
            meter.pause()
    session.launch.progress.end()
    session.record("event", event="stop", step=step, message=status)
    return Trained(status, step, elapsed_s)


def _status(session: Session, values: dict[str, Any], skips: int, stop_requested: bool) -> str | None:
    """Why the run ends after this step, None where it goes on; the same on every rank.

    Loss scaling may skip a step whose gradients overflow, and then lowers its scale. Without it, or when that has not
    helped for `MOST_SKIPS` times, numbers that are not finite mean that the run has diverged.
    """
    scaled = session.launch.strategy.precision == "fp16" and skips <= MOST_SKIPS
    wrong = [name for name in ("loss", "grad_norm") if values[name] is not None and not math.isfinite(values[name])]
    if wrong and not (scaled and values["skipped"]):
        message = f"{wrong[0]} {values[wrong[0]]} at step {values['step']}"
        session.record("event", event="error", step=values["step"], message=message)
        session.update(last_error=message)
        return "diverged"
    if stop_requested:
        return "interrupted"
    return session.limits.status(values["step"] - values["skipped"], values["elapsed_s"])


def evaluate(session: Session, step: int, elapsed_s: float, final: bool) -> None:
    """The loss on the held-out text, token-weighted: the same number at any world size."""
    begin = time.perf_counter()
    sums = session.engine.eval_loss(session.eval_batches)
    loss = sums.loss_sum / max(sums.labels, 1)
    bits_per_byte = sums.loss_sum / math.log(2) / sums.label_bytes if sums.label_bytes else None
    eval_s = time.perf_counter() - begin
    session.record(
        "eval",
        step=step,
        elapsed_s=elapsed_s,
        loss=loss,
        bits_per_byte=bits_per_byte,
        tokens=sums.labels,
        eval_s=eval_s,
        final=final,
    )
    session.launch.progress.say(f"eval       loss {loss:.4f} at step {step} ({sums.labels:,} tokens, {eval_s:.1f} s)")


def save(session: Session, step: int, elapsed_s: float) -> None:
    """A checkpoint from which `--resume` goes on with the same losses."""
    from lm_scale.training import checkpoint

    begin = time.perf_counter()
    state = {"elapsed_s": elapsed_s, "samples": step * session.launch.strategy.batch.global_batch}
    path = checkpoint.save(session.checkpoints, step, state, session.engine.save)
    session.record("event", event="checkpoint", step=step, message=str(path), seconds=time.perf_counter() - begin)


def finish(session: Session, trained: Trained) -> None:
    """After the last step and outside the budget: evaluate, write the weights, let the model speak."""
    arguments, step = session.launch.arguments, trained.step
    evaluate(session, step, trained.elapsed_s, final=True)
    if not arguments.no_save:
        _write_weights(session, step)
    tokenizer = session.tokenizer()
    if arguments.sample_tokens > 0 and tokenizer is not None:
        for prompt in arguments.sample_prompt or [_opening(session, tokenizer)]:
            text = session.engine.generate(tokenizer, prompt, arguments.sample_tokens)
            session.record("sample", step=step, prompt=prompt, text=text, tokens=arguments.sample_tokens, final=True)


def _opening(session: Session, tokenizer: Any) -> str:
    """The first words of the held-out text: a prompt where none was given."""
    return str(tokenizer.decode(session.data.eval.document(0)[:8].tolist(), skip_special_tokens=True))


def _write_weights(session: Session, step: int) -> None:
    from lm_scale.training.weights import write_final

    state = session.engine.full_state_dict()
    if session.is_first_rank:
        path = write_final(session.checkpoints, session.engine.model, state, session.data.tokenizer_path)
        size = sum(file.stat().st_size for file in path.iterdir())
        session.record("event", event="saved", step=step, message=str(path), bytes=size)
        session.launch.progress.say(f"weights    {path}")


if __name__ == "__main__":
    run_command(main)
