"""The engine of a DeepSpeed JSON: ZeRO 0 to 3, offload, tensor parallelism, over `deepspeed.initialize`.

What it adds to DeepSpeed: the loss is the mean over the labels of the whole global batch, not a mean of means; the
gradient norm is known at every stage; a parameter can be drawn, read and saved wherever its pieces lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.module_inject.layers import GatherReplacedLayerParams
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.utils import groups

from lm_scale.arguments import UserError
from lm_scale.data.batches import EvalBatch, StepBatches
from lm_scale.engines.evaluation import eval_sums, to_device
from lm_scale.engines.interface import EvalSums, StepResult
from lm_scale.engines.parameter_groups import decay_counts, parameter_groups
from lm_scale.strategy.load import get
from lm_scale.strategy.resolve import Strategy
from lm_scale.training.meter import PhaseClock, tensor_bytes
from lm_scale.training.sampling import continue_text

Context = AbstractContextManager[Any]
CHECKPOINT_TAG = "engine"
ModelBuilder = Callable[
    [Callable[[], Context] | None, Callable[[list[torch.nn.Parameter]], Context] | None], torch.nn.Module
]


class DeepSpeedEngine:
    """See `interface.Engine`. `build_model(partition, gather)` returns the loss module around transformers' `model`."""

    def __init__(self, strategy: Strategy, build_model: ModelBuilder) -> None:
        self._strategy = strategy
        self.layout = f"ZeRO-{strategy.zero_stage}"
        self._tensor_ranks = strategy.layout.tensor_parallel
        if self._tensor_ranks > 1:
            self.layout += f", each matrix over {self._tensor_ranks} ranks"
        self._reports = dist.get_rank() % self._tensor_ranks == 0  # the others of its tensor group have the same loss
        partitioned = strategy.zero_stage == 3
        loss_module = build_model(self._partition if partitioned else None, gather if partitioned else None)
        self.loss_module: Any = loss_module
        self.model: Any = loss_module.model
        self.params = sum(getattr(p, "ds_numel", p.numel()) for p in loss_module.parameters())
        self._initialize(loss_module)

    def _initialize(self, module: torch.nn.Module) -> None:
        """Hand the module that holds this rank's parameters to DeepSpeed."""
        strategy, self._module = self._strategy, module
        decay = get(strategy.document, "optimizer.params.weight_decay")
        param_groups = parameter_groups(module, decay)
        self._decay_counts = decay_counts(param_groups)
        self._engine, self._optimizer, _, self._scheduler = deepspeed.initialize(
            model=module,
            model_parameters=param_groups,
            config=strategy.document,
            dist_init_required=False,
        )
        self.device = torch.device(self._engine.device)
        self._gradient_bytes: int | None = None
        self._grad_norm: Any = None
        self._whole_gradients = strategy.zero_stage == 0 and strategy.precision == "fp32"
        if self._whole_gradients:
            self._engine.clip_fp32_gradients = self._clip_whole_gradients
        elif strategy.zero_stage == 0 and self._tensor_ranks > 1:
            self._clip_over_tensor_ranks()
        self._lr = 0.0

    def train_step(self, batches: StepBatches, lr: float, clock: PhaseClock) -> StepResult:
        engine = self._engine
        engine.train()
        self._set_lr(lr)
        # DeepSpeed divides by the accumulation and averages over the ranks; wanted is the mean over all labels.
        scale = engine.gradient_accumulation_steps() * engine.dp_world_size / max(batches.label_count, 1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches.micro_batches:
            input_ids, labels = to_device(batch, self.device)
            clock.lap("data")
            loss = engine(input_ids, labels)
            clock.lap("forward")
            engine.backward(loss * scale)
            loss_sum += loss.detach()
            clock.lap("backward")
            if engine.is_gradient_accumulation_boundary():
                self._before_update()
            engine.step()
            clock.lap("optimizer")
        if not self._reports:
            loss_sum.zero_()
        return self._result(loss_sum)

    def _before_update(self) -> None:
        """Read off the gradients what the optimizer's step leaves nothing of."""
        if self._gradient_bytes is None:
            self._gradient_bytes = tensor_bytes(self._live_gradients())
        if self._whole_gradients:
            self._grad_norm = self._whole_gradient_norm()

    def _result(self, loss_sum: torch.Tensor) -> StepResult:
        if not self._whole_gradients:
            self._grad_norm = self._engine.get_global_grad_norm()
        grad_norm = None if self._grad_norm is None else float(self._grad_norm)
        return StepResult(loss_sum, grad_norm, not self._engine.was_step_applied())

    def _set_lr(self, lr: float) -> None:
        if self._scheduler is None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        self._lr = float(self._optimizer.param_groups[0]["lr"])

    def decay_counts(self) -> dict[str, int]:
        return self._decay_counts

    def lr(self) -> float:
        return self._lr

    def eval_loss(self, batches: Iterable[EvalBatch]) -> EvalSums:
        self._engine.eval()
        sums = eval_sums(self._engine, batches, self.device)
        return sums.shared_by(self._tensor_ranks)

    def generate(self, tokenizer: Any, prompt: str, tokens: int) -> str:
        return continue_text(self.model, tokenizer, prompt, tokens, fixed_length=True)

    def state_bytes(self) -> dict[str, int]:
        held = self.held_tensors()
        own = [tensor_bytes(held["parameters"]), self._gradient_bytes or 0, tensor_bytes(held["master_weights"])]
        own.append(tensor_bytes(held["optimizer_states"]))
        fullest = torch.tensor(own, dtype=torch.int64, device=self.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(fullest, op=dist.ReduceOp.MAX)
        return dict(zip(("parameters", "gradients", "master_weights", "optimizer"), fullest.tolist(), strict=True))

    def held_tensors(self) -> dict[str, list[torch.Tensor]]:
        """This rank's live parameters, gradients, master_weights and optimizer_states; each storage under one name."""
        parameters = [getattr(p, "ds_tensor", p) for p in self._module.parameters()]
        masters = self._master_weights()
        known = {_storage(tensor) for tensor in (*parameters, *masters)}
        states = [
            tensor
            for state in self._engine.basic_optimizer.state.values()
            for tensor in state.values()
            if torch.is_tensor(tensor) and _storage(tensor) not in known
        ]
        return {
            "parameters": parameters,
            "gradients": self._live_gradients(),
            "master_weights": masters,
            "optimizer_states": states,
        }

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        whole: dict[int, torch.Tensor] = {}
        first = dist.get_rank() == 0
        for module in self.model.modules():
            own = [p for p in module.parameters(recurse=False) if id(p) not in whole]
            with self._whole(own):
                for tensor in own:
                    whole[id(tensor)] = tensor.detach().to("cpu", copy=True) if first else torch.empty(0)
        if not first:
            return {}
        state = self.model.state_dict(keep_vars=True)
        return {name: whole.get(id(tensor), tensor.detach().cpu()) for name, tensor in state.items()}

    @contextmanager
    def _whole(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        """A context in which one module's own parameters are whole, wherever their pieces lie."""
        partitioned = [p for p in parameters if hasattr(p, "ds_id")]
        cut = self._tensor_ranks > 1 and bool(parameters)
        whole = gather(partitioned) if partitioned else nullcontext()
        with whole, torch.no_grad(), GatherReplacedLayerParams(parameters, self.model, enabled=cut):
            yield

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")

    def _partition(self) -> Context:
        context: Context = deepspeed.zero.Init(config_dict_or_path=self._strategy.document)
        return context

    def _whole_gradient_norm(self) -> float:
        """The norm of averaged gradients that are not split over replicas (stage 0 in fp32), summed in fp64.

        Of matrices that tensor parallelism cut each rank adds its part; what is whole on every rank counts once.
        """
        parts: dict[bool, list[torch.Tensor]] = {False: [], True: []}
        for parameter in self._module.parameters():
            if parameter.grad is not None:
                parts[bool(getattr(parameter, "tensor_model_parallel", False))].append(parameter.grad)
        whole, cut = (squares(parts[is_cut], self.device) for is_cut in (False, True))
        if self._tensor_ranks > 1:
            dist.all_reduce(cut, group=groups.get_tensor_model_parallel_group())
        return math.sqrt(float(whole + cut))

    def _clip_whole_gradients(self) -> None:
        """Clip by the norm just measured, in place of DeepSpeed's `clip_fp32_gradients`.

        That one sums squares in fp32, is off by up to 1e-5 over millions of numbers, and keeps the norm to itself
        (`deepspeed/runtime/utils.py`, `clip_grad_norm_`). Its clipping coefficient alone made ZeRO-0 part from ZeRO-1.
        """
        assert self._grad_norm is not None
        coefficient = self._engine.gradient_clipping() / (self._grad_norm + 1e-6)
        if coefficient < 1:
            torch._foreach_mul_([p.grad for p in self._module.parameters() if p.grad is not None], coefficient)

    def _clip_over_tensor_ranks(self) -> None:
        """Let the optimizer of ZeRO-0 below fp32 clip by the whole model's norm.

        It knows of no tensor ranks and takes each rank's part for the whole (`runtime/fp16/unfused_optimizer.py`,
        `step`): ranks clip unequally, and what all of them hold drifts apart.

        Raises:
            UserError: the optimizer is one of DeepSpeed's that keeps its gradients to itself.
        """
        optimizer = self._optimizer
        if not isinstance(optimizer, FP16_UnfusedOptimizer):
            raise UserError(
                f"{self._strategy.path}: tensor_parallel: DeepSpeed clips each rank by its own norm under ZeRO-0 with "
                f"this optimizer; set zero_optimization.stage to 1, or optimizer.params.torch_adam to true"
            )

        def clip(total_norm: Any, apply_scale: bool = True) -> Any:
            optimizer._global_grad_norm = self._whole_gradient_norm()
            return FP16_UnfusedOptimizer.unscale_and_clip_grads(optimizer, optimizer._global_grad_norm, apply_scale)

        optimizer.unscale_and_clip_grads = clip

    def _live_gradients(self) -> list[torch.Tensor]:
        held = [p.grad for p in self._module.parameters() if p.grad is not None]
        averaged = getattr(self._optimizer, "averaged_gradients", None) or {}
        for group in averaged.values():
            held += [gradient for gradient in group or [] if torch.is_tensor(gradient)]
        buffer = getattr(self._optimizer, "grad_partitions_flat_buffer", None)
        held += [buffer] if torch.is_tensor(buffer) else []
        held += getattr(self._optimizer, "fp32_groups_gradients_flat", [])  # BF16_Optimizer's, of a pipeline
        held += [master.grad for master in self._master_weights() if master.grad is not None]
        return held

    def _master_weights(self) -> list[torch.Tensor]:
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            groups = getattr(self._optimizer, name, None)
            if groups is not None:
                return list(groups)
        groups = getattr(self._optimizer, "fp32_groups", None)
        return [tensor for group in groups for tensor in group] if groups else []


def gather(parameters: list[torch.nn.Parameter]) -> Context:
    """A context in which partitioned parameters are whole; what the first rank writes in it becomes every rank's."""
    context: Context = deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
    return context


def squares(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The sum of squares, a scalar in fp64."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return sum((norm * norm for norm in norms), start=torch.zeros((), dtype=torch.float64, device=device))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
