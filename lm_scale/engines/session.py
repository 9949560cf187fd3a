"""A run that is ready to train, and how it is started: process group, model, engine, run directory, in this order."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from lm_scale.arguments import UserError
from lm_scale.data.batches import EvalBatches, Samples, TrainBatches
from lm_scale.data.tokens import TokenFiles
from lm_scale.engines.describe import DTYPES, LossModule, built_facts, make_header, memory_of_others, summary
from lm_scale.engines.interface import Engine
from lm_scale.engines.launch import Launch, agree, on_host
from lm_scale.engines.nvme import claim_swap_folders, mend_swapping
from lm_scale.engines.operators import build as build_operators
from lm_scale.engines.operators import needed
from lm_scale.engines.process import join_group
from lm_scale.engines.run_directory import open_run, reopen
from lm_scale.models.build import build
from lm_scale.models.loss import CausalLMLoss, choose_loss
from lm_scale.records import Header, Writer, now
from lm_scale.strategy.resolve import fill_schedule
from lm_scale.training import checkpoint
from lm_scale.training.limits import Limits
from lm_scale.training.meter import Meter
from lm_scale.training.mirror import Mirror
from lm_scale.training.probe import matrix_product_flops_per_s
from lm_scale.training.progress import human_bytes


@dataclass
class Session:
    """One run. `engine` and `meter` are there after `build_engine`; `claims` keep NVMe folders ours while it lives.

    `first_step` and `elapsed_s` are what a resumed run has behind it.
    """

    launch: Launch
    device: torch.device
    data: TokenFiles
    batches: TrainBatches
    eval_batches: EvalBatches
    limits: Limits
    run_dir: Path
    writer: Writer
    header: Header
    claims: list[IO[str]]
    engine: Engine = field(init=False)
    meter: Meter = field(init=False)
    mirror: Mirror | None = None
    first_step: int = 0
    elapsed_s: float = 0.0
    _tokenizer: Any = field(default=None, repr=False)

    @property
    def is_first_rank(self) -> bool:
        return self.launch.process.rank == 0

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def record(self, kind: str, **values: Any) -> None:
        """One record of the whole run, which the first rank writes."""
        if self.is_first_rank:
            self.writer.append(kind, **values)
            if self.mirror is not None and kind != "event":
                self.mirror.log(kind, values)

    def update(self, **changes: Any) -> None:
        """Change the header, which the first rank owns."""
        if self.is_first_rank:
            self.writer.update(**changes)

    def measure_machine(self) -> None:
        """After the first step: bytes of the live state, and on a CPU the matrix-product rate that MFU refers to."""
        hardware = self.header["hardware"]
        if hardware["device"] == "cpu":
            rate = matrix_product_flops_per_s(DTYPES[self.launch.strategy.precision])
            hardware = {**hardware, "device_peak_flops_per_s": rate}
        self.update(state_bytes=self.engine.state_bytes(), hardware=hardware)

    def end(self, status: str) -> None:
        """Write the status with which the run ended, and close what shows and repeats it."""
        self.launch.progress.end()
        self.update(status=status, finished_at=now())
        if self.mirror is not None:
            self.mirror.finish(status)

    def tokenizer(self) -> Any:
        """The tokenizer, or None where the data came tokenized."""
        if self._tokenizer is None and self.data.tokenizer_path is not None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.data.tokenizer_path)
        return self._tokenizer


def begin(launch: Launch, data: TokenFiles) -> Session:
    """Join the other ranks and make the run's record, so that whatever goes wrong afterwards is in it; collective.

    Raises:
        UserError: on every rank alike, where something that only now can be known is wrong.
    """
    arguments, process, strategy = launch.arguments, launch.process, launch.strategy
    device = join_group(launch.machine, arguments.engine)
    torch.manual_seed(arguments.seed)
    claims: list[IO[str]] = []
    on_host(process, lambda: claims.extend(claim_swap_folders(strategy)))
    if arguments.engine == "deepspeed":
        on_host(process, lambda: build_operators(needed(strategy), launch.progress.say))
    batches, eval_batches = _batches(launch, data)
    limits = Limits.of(arguments, batches.samples_in_epoch / strategy.batch.global_batch)
    fill_schedule(strategy, limits.planned_steps, limits.warmup_steps)
    header = make_header(launch, data, batches, limits, device)
    run_dir, writer = open_run(launch, header)
    return Session(launch, device, data, batches, eval_batches, limits, run_dir, writer, header, claims)


def build_engine(session: Session) -> None:
    """Build the model and its engine, complete the record, say what the run is; collective.

    Raises:
        UserError: on every rank alike; the record is gone then, if this run made it.
    """
    launch = session.launch
    made: list[LossModule] = []
    try:
        session.engine = _engine(session, made)
    except UserError:
        if session.is_first_rank and not launch.arguments.resume:
            shutil.rmtree(session.run_dir)
        raise
    session.meter = Meter(session.engine.device)
    facts = built_facts(launch, session.header, session.engine, made[0])
    session.header |= facts
    if launch.arguments.resume:
        _resume(session)
    else:
        session.update(**facts)
    for line in summary(session.run_dir, session.header, session.engine, save=not launch.arguments.no_save):
        launch.progress.say(line)
    if launch.arguments.report_to == "wandb" and session.is_first_rank:
        session.mirror = Mirror(session.run_dir, {**session.header, "name": session.run_dir.name}, launch.progress.say)
        session.update(wandb_url=session.mirror.url)
    if taken := memory_of_others(session.engine.device):
        message = f"other processes hold {human_bytes(taken)} of this device: times and memory are not this run's alone"
        session.writer.append("event", event="device_shared", rank=launch.process.rank, message=message)
        launch.progress.say(f"warning    {message}")


def _engine(session: Session, made: list[LossModule]) -> Engine:
    launch, strategy = session.launch, session.launch.strategy
    vocab_size = session.data.meta["vocab_size"]
    if launch.arguments.engine == "torch":
        from lm_scale.engines.native import NativeEngine

        return NativeEngine(strategy, loss_module(launch, vocab_size, made, None, None), session.device)
    if strategy.layout.pipeline_stages > 1:
        from lm_scale.engines.pipeline import PipelineEngine

        module = loss_module(launch, vocab_size, made, None, None)
        return PipelineEngine(strategy, module, compiled=launch.arguments.torch_compile)
    from lm_scale.engines.deepspeed import DeepSpeedEngine

    if "nvme" in strategy.offload:
        mend_swapping()
    return DeepSpeedEngine(strategy, lambda partition, gather: loss_module(launch, vocab_size, made, partition, gather))


def _batches(launch: Launch, data: TokenFiles) -> tuple[TrainBatches, EvalBatches]:
    arguments, batch = launch.arguments, launch.strategy.batch
    rank = launch.strategy.layout.data_rank(launch.process.rank)
    packing = not arguments.no_packing
    train = TrainBatches(
        Samples(data.train, packing=packing, seq_len=arguments.seq_len),
        seed=arguments.seed,
        global_batch=batch.global_batch,
        micro_batch=batch.micro_batch,
        grad_accum=batch.grad_accum,
        data_parallel=batch.data_parallel,
        data_rank=rank,
    )
    held_out = EvalBatches(
        Samples(data.eval, packing=packing, seq_len=arguments.seq_len, keep_partial=True),
        micro_batch=arguments.per_device_eval_batch_size or batch.micro_batch,
        data_parallel=batch.data_parallel,
        data_rank=rank,
    )
    return train, held_out


def loss_module(launch: Launch, vocab_size: int, made: list[LossModule], partition: Any, gather: Any) -> CausalLMLoss:
    """The module that an engine trains, built and set up; appends to `made` what is to be known of it."""
    arguments = launch.arguments
    model, notes = build(
        launch.source,
        vocab_size=vocab_size,
        seq_len=arguments.seq_len,
        attn_implementation=arguments.attn_implementation,
        seed=arguments.seed,
        dtype=DTYPES[launch.strategy.precision] if partition else torch.float32,
        partition=partition,
        gather=gather,
    )
    if launch.strategy.activation_checkpointing:
        recompute: Any = model.gradient_checkpointing_enable
        recompute(gradient_checkpointing_kwargs={"use_reentrant": False})
    choice = choose_loss(model, arguments.loss, "cpu" if launch.machine.device == "cpu" else "cuda")
    module = CausalLMLoss(model, choice.mode)
    if arguments.torch_compile:
        module.compile()
    made.append(LossModule(module, choice.reason, notes))
    return module


def _resume(session: Session) -> None:
    path = checkpoint.newest(session.checkpoints)
    state = checkpoint.read_state(path)
    session.engine.load(path)
    checkpoint.restore_random_state(path)
    session.first_step, session.elapsed_s = state["step"], state["elapsed_s"]
    changes = {key: session.header[key] for key in ("arguments", "schedule", "numerics", "optimizer", "versions")}
    agree(session.launch.process, lambda: reopen(session.run_dir, path, session.first_step, changes))
    session.writer = Writer(session.run_dir)  # the file of the old records has been replaced, on every rank
    session.launch.progress.say(f"going on from step {session.first_step} ({path})")
