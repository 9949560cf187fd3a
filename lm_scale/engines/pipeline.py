"""The engine of a DeepSpeed JSON with `pipeline.stages`: the same Hugging Face model, cut into stages.

Ranks are stages x replicas, the stage first: rank = stage x replicas + replica. The stages of a replica read the same
samples. What it adds to DeepSpeed's pipeline: the model is cut from the same seeded weights that every other layout
starts from; stages can be balanced by their products (`partition_method: flops`); the loss is the mean over the labels
of the whole global batch; and the gradient norm is the whole model's, taken here, because DeepSpeed's own is not

    in fp32 under ZeRO-0: it counts the first stage alone (`deepspeed/runtime/utils.py`, `clip_grad_norm_`: a rank adds
    its parameters only where its model-parallel rank is 0, which in a pipeline is the stage);
    under ZeRO-1: it reduces over the stages once a parameter group, and waits for ever where one stage has a group that
    another has not, as a stage without norms (`runtime/zero/stage_1_and_2.py`, `scaled_global_norm`);
    in bf16: it fails on a stage that has nothing but the tied head (`runtime/utils.py`, `get_global_norm_of_tensors`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime import utils as deepspeed_utils
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.module import PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology
from torch import Tensor
from transformers import AutoModelForCausalLM

from lm_scale.arguments import UserError
from lm_scale.data.batches import EvalBatch, StepBatches
from lm_scale.engines.deepspeed import DeepSpeedEngine, squares
from lm_scale.engines.evaluation import over_ranks, to_device
from lm_scale.engines.interface import EvalSums, StepResult
from lm_scale.engines.process import broadcast_object
from lm_scale.models.loss import CausalLMLoss, Mode, head_loss
from lm_scale.models.stages import Block, Embedding, Layer, layers
from lm_scale.strategy.load import get
from lm_scale.strategy.resolve import Strategy
from lm_scale.training.meter import PhaseClock
from lm_scale.training.sampling import continue_text

PHASE = {
    schedule.LoadMicroBatch: "data",
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.SendActivation: "idle",
    schedule.RecvActivation: "idle",
    schedule.SendGrad: "idle",
    schedule.RecvGrad: "idle",
    schedule.ReduceTiedGrads: "backward",
    schedule.ReduceGrads: "backward",
    schedule.OptimizerStep: "optimizer",
}
"""Where a stage's time goes. Sending and receiving is waiting for the other stage: the bubble, measured."""


class PipelineEngine(DeepSpeedEngine):
    """See `interface.Engine`. `model` has the whole model's shapes and no numbers; each rank holds one stage."""

    def __init__(self, strategy: Strategy, loss_module: CausalLMLoss, compiled: bool = False) -> None:
        self._strategy = strategy
        whole = loss_module.model
        self._config = whole.config
        self._names = {id(parameter): name for name, parameter in whole.named_parameters()}
        self.model: Any = _shapes_of(whole)
        self.params = sum(p.numel() for p in whole.parameters())
        self._tensor_ranks = 1
        self._loss = _StageLoss(loss_module.mode)
        stages = strategy.layout.pipeline_stages
        self._pipe = _Pipeline(
            layers(whole), stages, str(get(strategy.document, "pipeline.partition_method", "flops")), self._loss
        )
        if compiled:
            self._pipe.compile()
        self._loss.head = self._pipe.head()
        self.layout = f"{stages} pipeline stages of {self._pipe.described()}, ZeRO-{strategy.zero_stage}"
        del whole, loss_module
        self._initialize(self._pipe)
        self._loss.device = self.device
        self._is_last = self._engine.is_last_stage()
        self._replica = strategy.layout.data_rank(dist.get_rank())
        self._clock: PhaseClock | None = None
        self._shape: tuple[int, ...] | None = None
        if hasattr(self._optimizer, "scaled_global_norm") and strategy.offload == "none":
            self._optimizer.scaled_global_norm = self._partitioned_gradient_norm
        if hasattr(self._optimizer, "get_grads_for_norm"):
            self._optimizer.get_grads_for_norm = self._low_precision_gradients
        self._engine._INSTRUCTION_MAP = {kind: self._timed(kind) for kind in PHASE}

    def train_step(self, batches: StepBatches, lr: float, clock: PhaseClock) -> StepResult:
        engine = self._engine
        self._set_lr(lr)
        self._clock = clock
        # DeepSpeed divides by the micro-batches and averages over the replicas; wanted is the mean over all labels.
        replicas = self._strategy.batch.data_parallel
        self._loss.begin(engine.gradient_accumulation_steps() * replicas / max(batches.label_count, 1))
        self._expect(batches.micro_batches[0].input_ids.shape)
        engine.train_batch(iter([to_device(batch, self.device) for batch in batches.micro_batches]))
        clock.lap("optimizer")
        self._clock = None
        return self._result(self._loss.total)

    def eval_loss(self, batches: Iterable[EvalBatch]) -> EvalSums:
        held_out = list(batches)
        self._expect(held_out[0].input_ids.shape)
        self._loss.begin(1.0)
        self._engine.eval_batch(
            iter([to_device(batch, self.device) for batch in held_out]),
            reduce_output=None,
            bcast_loss=False,
            num_micro_batches=len(held_out),
        )
        own = [float(self._loss.total), *(sum(values) for values in _labels(held_out))] if self._is_last else [0.0] * 3
        return over_ranks(torch.tensor(own, dtype=torch.float64, device=self.device))

    def generate(self, tokenizer: Any, prompt: str, tokens: int) -> str:
        """By the first rank alone, on its CPU, from the whole weights: one token's pass would leave the others idle."""
        state, text = self.full_state_dict(), None
        if dist.get_rank() == 0:
            model: Any = AutoModelForCausalLM.from_config(self._config)  # type: ignore[no-untyped-call]
            model.load_state_dict(state)
            text = continue_text(model, tokenizer, prompt, tokens)
        return str(broadcast_object(text))

    def full_state_dict(self) -> dict[str, Tensor]:
        own = {}
        if self._replica == 0:
            for parameter in self._pipe.parameters():
                if not parameter.ds_pipe_replicated:
                    own[self._names[id(parameter)]] = parameter.detach().to("cpu", copy=True)
        stages: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, stages)
        if stages is None:
            return {}
        state: dict[str, Tensor] = {name: tensor for part in stages for name, tensor in part.items()}
        for name, tied in self._names_of_ties().items():
            state[name] = state[tied]
        return state

    def decay_counts(self) -> dict[str, int]:
        """Of the whole model: every stage's own parameters, a tied one once."""
        counts = []
        for decays in (True, False):
            group = [p for p in self._pipe.parameters() if (p.dim() > 1) == decays and not p.ds_pipe_replicated]
            counts.append(sum(p.numel() for p in group))
        total = torch.tensor(counts, device=self.device)
        dist.all_reduce(total, group=self._pipe._grid.get_pipe_parallel_group())
        return dict(zip(("decayed_params", "undecayed_params"), total.tolist(), strict=True))

    def load(self, folder: Path) -> None:
        super().load(folder)
        self._expect(())

    def _names_of_ties(self) -> dict[str, str]:
        """Names that the model's state has beside that of the parameter which they share."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {name: first[id(p)] for name, p in named.items() if first[id(p)] != name}

    def _expect(self, shape: tuple[int, ...]) -> None:
        """Stages exchange the shapes of what they send once; let them do it again where the batch has another."""
        if shape != self._shape:
            self._engine.reset_activation_shape()
        self._shape = shape

    def _timed(self, kind: type) -> Callable[..., None]:
        """DeepSpeed's execution of an instruction, ending a lap of the step's clock."""
        execute, phase = type(self._engine)._INSTRUCTION_MAP[kind], PHASE[kind]

        def run(engine: Any, **arguments: Any) -> None:
            if kind is schedule.OptimizerStep:
                self._before_update()
            execute(engine, **arguments)
            if self._clock is not None:
                self._clock.lap(phase)

        return run

    def _whole_gradient_norm(self) -> float:
        """Squares of every stage's own gradients, summed over the stages; a tied one counts once."""
        own = [p.grad for p in self._pipe.parameters() if p.grad is not None and not p.ds_pipe_replicated]
        return math.sqrt(float(self._over_stages(squares(own, self.device))))

    def _partitioned_gradient_norm(self, norm_type: int = 2) -> Tensor:
        """The same of gradients that ZeRO-1 has split over the replicas, in place of its `scaled_global_norm`."""
        optimizer, own = self._optimizer, []
        for group, gradients in optimizer.averaged_gradients.items():
            real = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
            pairs = zip(real, optimizer.params_in_partition[group], strict=False)
            own += [gradient for gradient, parameter in pairs if not parameter.ds_pipe_replicated]
        total = squares(own, self.device)
        dist.all_reduce(total, group=optimizer.dp_process_group)
        return self._over_stages(total).sqrt().float()

    def _low_precision_gradients(self, for_clipping: bool = False) -> Any:
        """What `BF16_Optimizer` sums over the stages: here one number, the norm of this stage's own gradients.

        Its own list is empty, and its sum fails, where a stage has nothing but the tied head.
        """
        found = type(self._optimizer).get_grads_for_norm(self._optimizer, for_clipping)
        if for_clipping:
            return found
        gradients, of_experts = found
        return [squares(gradients, self.device).sqrt()], of_experts

    def _over_stages(self, own: Tensor) -> Tensor:
        dist.all_reduce(own, group=self._pipe._grid.get_pipe_parallel_group())
        return own


class _StageLoss:
    """The loss of the last stage; `total` is the sum over the labels since `begin`, unscaled (0 on other stages)."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.device = torch.device("cpu")
        self.head: Tensor | None = None
        self.begin(1.0)

    def begin(self, scale: float) -> None:
        self._scale = scale
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)

    def __call__(self, hidden: Tensor, labels: Tensor) -> Tensor:
        assert self.head is not None
        loss = head_loss(self.mode, hidden.flatten(0, 1), self.head, None, labels.flatten())
        self.total += loss.detach()
        return loss * self._scale


class _Pipeline(PipelineModule):  # type: ignore[misc]
    """DeepSpeed's module over the layers of `models.stages`, which are built already."""

    def __init__(self, row: list[Layer], stages: int, method: str, loss: _StageLoss) -> None:
        self._row = row
        topology = PipeDataParallelTopology(num_pp=stages, num_dp=dist.get_world_size() // stages)
        super().__init__([_spec(layer) for layer in row], topology=topology, loss_fn=loss, partition_method=method)

    def head(self) -> Tensor | None:
        """The weight that the last stage's loss multiplies with; None elsewhere."""
        if self.stage_id != self.num_stages - 1:
            return None
        last = self._row[-1]
        module: Any = self.tied_modules["embedding"] if last.tied else last.module
        weight: Tensor = module.module.weight
        return weight

    def described(self) -> str:
        """Blocks a stage, and how evenly the products lie."""
        blocks = [
            sum(isinstance(layer.module, Block) for layer in self._slice(stage)) for stage in range(self.num_stages)
        ]
        return f"{'+'.join(map(str, blocks))} blocks (balance {self.balance():.2f})"

    def balance(self) -> float:
        """The mean stage's products over the fullest one's: 1 where all are equal."""
        loads = [sum(layer.weight for layer in self._slice(stage)) for stage in range(self.num_stages)]
        return sum(loads) / len(loads) / max(loads)

    def _slice(self, stage: int) -> list[Layer]:
        return self._row[self.parts[stage] : self.parts[stage + 1]]

    def _partition_layers(self, method: str = "uniform") -> None:
        """Also `flops`, the products' own cost: a look-up has none, so an embedding does not push blocks away.

        Patterns after `type:` are matched with the class names of the model's own blocks.
        """
        if method.lower() == "flops":
            weights = [layer.weight for layer in self._row]
        elif method.lower().startswith("type:"):
            weights = [float(bool(re.search(method[5:], layer.kind, re.IGNORECASE))) for layer in self._row]
            if not any(weights):
                kinds = ", ".join(sorted({layer.kind for layer in self._row}))
                raise UserError(f"pipeline.partition_method: {method}: no layer's type matches; there are {kinds}")
        else:
            weights = []
            super()._partition_layers(method)
        if weights:
            self.parts = deepspeed_utils.partition_balanced(weights=weights, num_parts=self.num_stages)
            stage = self._topo.get_coord(self.global_rank).pipe
            self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])
        for stage in range(self.num_stages):
            if not any(True for layer in self._slice(stage) for _ in layer.module.parameters()):
                raise UserError(
                    f"pipeline.stages: {self.num_stages}: stage {stage} would have no parameters of this model of "
                    f"{len(self._row)} layers; use fewer stages or another partition_method"
                )


def _spec(layer: Layer) -> Any:
    if not layer.tied:
        return layer.module
    use_as_head = layer.kind == "Head"
    forward = (lambda module, hidden: hidden) if use_as_head else None
    return TiedLayerSpec(
        "embedding", Embedding, layer.module.module, forward_fn=forward, tied_weight_attr=["module.weight"]
    )


def _shapes_of(model: Any) -> Any:
    """The whole model on the meta device: names, shapes, config."""
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            model.config, attn_implementation=model.config._attn_implementation
        )
    shapes.tie_weights()
    return shapes


def _labels(batches: list[EvalBatch]) -> Iterator[list[float]]:
    yield [float(batch.label_count) for batch in batches]
    yield [math.nan if batch.label_bytes is None else float(batch.label_bytes) for batch in batches]
