"""The independent reference: the same JSON by native PyTorch, without DeepSpeed.

    stage 0     DDP; below fp32 FSDP2 over groups of one rank, which keeps fp32 master weights
    stage 1, 2  FSDP2, parameters whole from forward to backward; stage 1 reduces once a step, 2 each micro-batch
    stage 3     FSDP2, parameters freed after each block; hpZ becomes HSDP, split within a group, repeated over groups

Losses, clipping and the optimizer's mathematics are those of `DeepSpeedEngine`; none of DeepSpeed's code trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lm_scale.data.batches import EvalBatch, StepBatches
from lm_scale.engines.evaluation import eval_sums, to_device
from lm_scale.engines.interface import EvalSums, StepResult
from lm_scale.engines.parameter_groups import decay_counts, parameter_groups
from lm_scale.models.loss import CausalLMLoss
from lm_scale.strategy import native
from lm_scale.strategy.load import get
from lm_scale.strategy.resolve import Strategy
from lm_scale.training.meter import PhaseClock, tensor_bytes
from lm_scale.training.sampling import continue_text

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class NativeEngine:
    """See `interface.Engine`. `loss_module` is whole, in fp32 and on the CPU."""

    def __init__(self, strategy: Strategy, loss_module: CausalLMLoss, device: torch.device) -> None:
        self.device = device
        self.loss_module = loss_module
        self.model: Any = loss_module.model
        self._strategy = strategy
        self._ranks = dist.get_world_size()
        self._shards: Any = None
        self.params = sum(p.numel() for p in loss_module.parameters())
        self._module = self._distribute(loss_module)
        decay = get(strategy.document, "optimizer.params.weight_decay")
        self.param_groups = parameter_groups(loss_module, decay)
        name, parameters = native.optimizer(strategy.document)
        self._optimizer = getattr(torch.optim, name)(self.param_groups, **parameters)
        self._scheduler = _scheduler(strategy, self._optimizer)
        self._gradient_bytes = 0
        self._lr = 0.0

    def train_step(self, batches: StepBatches, lr: float, clock: PhaseClock) -> StepResult:
        self._module.train()
        if self._scheduler is None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        self._lr = float(self._optimizer.param_groups[0]["lr"])
        # The reduction averages over the ranks; wanted is the mean over the labels of the whole global batch.
        scale = self._ranks / max(batches.label_count, 1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(batches.micro_batches, 1):
            input_ids, labels = to_device(batch, self.device)
            clock.lap("data")
            with self._reducing(last=number == len(batches.micro_batches)):
                loss = self._module(input_ids, labels)
                clock.lap("forward")
                (loss * scale).backward()
            loss_sum += loss.detach()
            clock.lap("backward")
        self._gradient_bytes = self._gradient_bytes or _bytes(self._gradients())
        norm = self._gradient_norm()
        self._clip(norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            self._scheduler.step()
        clock.lap("optimizer")
        return StepResult(loss_sum, norm, skipped=False)

    def decay_counts(self) -> dict[str, int]:
        return decay_counts(self.param_groups)

    def lr(self) -> float:
        return self._lr

    def eval_loss(self, batches: Iterable[EvalBatch]) -> EvalSums:
        self._module.eval()
        return eval_sums(self._module, batches, self.device)

    def generate(self, tokenizer: Any, prompt: str, tokens: int) -> str:
        """Blocks gather themselves; what is outside of them belongs to the root, whose forward is not called here."""
        root: Any = self.loss_module
        if self._is_sharded:
            root.unshard()
        text = continue_text(self.model, tokenizer, prompt, tokens, fixed_length=True)
        if self._is_sharded:
            root.reshard()
        return text

    def state_bytes(self) -> dict[str, int]:
        held = _bytes(list(self.model.parameters()))
        states = [value for state in self._optimizer.state.values() for value in state.values()]
        masters = self._strategy.precision != "fp32"  # FSDP2's low-precision copies live from forward to backward only
        own = [0 if masters else held, self._gradient_bytes, held if masters else 0, _bytes(states)]
        fullest = torch.tensor(own, dtype=torch.int64, device=self.device)
        dist.all_reduce(fullest, op=dist.ReduceOp.MAX)
        return dict(zip(("parameters", "gradients", "master_weights", "optimizer"), fullest.tolist(), strict=True))

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        whole: dict[int, torch.Tensor] = {}
        state: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in whole:
                full = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
                whole[id(tensor)] = full.to("cpu", copy=True) if dist.get_rank() == 0 else torch.empty(0)
            state[name] = whole[id(tensor)]
        return state if dist.get_rank() == 0 else {}

    def save(self, folder: Path) -> None:
        state_dict_saver.save(self._state(), checkpoint_id=folder)
        if self._scheduler is not None and dist.get_rank() == 0:
            torch.save(self._scheduler.state_dict(), folder / "scheduler.pt")

    def load(self, folder: Path) -> None:
        state = self._state()
        state_dict_loader.load(state, checkpoint_id=folder)
        set_state_dict(
            self._module, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        if self._scheduler is not None:
            self._scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._module, self._optimizer)
        return {"model": model, "optimizer": optimizer}

    @property
    def _is_sharded(self) -> bool:
        return self._shards is not None

    def _distribute(self, module: CausalLMLoss) -> Any:
        """The module over the ranks: DDP, or each block and then the rest under FSDP2."""
        strategy = self._strategy
        if strategy.zero_stage == 0 and strategy.precision == "fp32":
            module.to(self.device)
            self.layout = "DDP" if self._ranks > 1 else "one device"
            return DistributedDataParallel(module, broadcast_buffers=False) if self._ranks > 1 else module
        mesh = self._mesh()
        dtype = _DTYPES[strategy.precision]
        precision = MixedPrecisionPolicy(
            param_dtype=None if dtype is torch.float32 else dtype,
            reduce_dtype=None if dtype is torch.float32 else _DTYPES[strategy.reduction_precision],
        )
        # On a CPU everything is where the policy would put it.
        offloads = strategy.offload != "none" and self.device.type != "cpu"
        offload: OffloadPolicy = CPUOffloadPolicy() if offloads else OffloadPolicy()
        if not offloads:
            module.to(self.device)
        kinds = set(self.model._no_split_modules or ())
        for block in [part for part in self.model.modules() if type(part).__name__ in kinds]:
            freed = strategy.zero_stage == 3
            fully_shard(block, mesh=mesh, reshard_after_forward=freed, mp_policy=precision, offload_policy=offload)
        fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=precision, offload_policy=offload)
        self._shards = mesh[mesh.mesh_dim_names[-1]].get_group() if mesh.mesh_dim_names else mesh.get_group()
        return module

    def _mesh(self) -> DeviceMesh:
        """All ranks in one row, or groups that split by groups that repeat (HSDP)."""
        size = 1 if self._strategy.zero_stage == 0 else native.shard_group(self._strategy.document)
        if size is None or size == self._ranks:
            self.layout = "FSDP2" + ("" if self._strategy.zero_stage == 3 else ", parameters kept after forward")
            return init_device_mesh(self.device.type, (self._ranks,), mesh_dim_names=("shard",))
        shape = (self._ranks // size, size)
        self.layout = f"{shape[0]} replicas of FSDP2 over {size} ranks"
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def _reducing(self, last: bool) -> AbstractContextManager[Any]:
        """Whether this micro-batch's gradients are reduced at once or kept whole until the last one's."""
        module = self._module
        if isinstance(module, DistributedDataParallel):
            return nullcontext() if last else cast(AbstractContextManager[Any], module.no_sync())
        if self._is_sharded and self._strategy.zero_stage < 2:
            module.set_requires_gradient_sync(last)
        return nullcontext()

    def _gradients(self) -> list[torch.Tensor]:
        """This rank's part of every gradient."""
        return [_local(p.grad) for p in self.loss_module.parameters() if p.grad is not None]

    def _gradient_norm(self) -> float:
        """The norm of the whole averaged gradient, squares summed in fp64."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in self._gradients() if g.numel()]
        total = sum((n * n for n in norms), start=torch.zeros((), dtype=torch.float64)).to(self.device)
        if self._is_sharded:
            dist.all_reduce(total, group=self._shards)
        return math.sqrt(float(total))

    def _clip(self, norm: float) -> None:
        limit = get(self._strategy.document, "gradient_clipping")
        if limit and limit / (norm + 1e-6) < 1:
            torch._foreach_mul_(self._gradients(), limit / (norm + 1e-6))


def _scheduler(strategy: Strategy, optimizer: torch.optim.Optimizer) -> Any:
    """The JSON's own schedule: its parameters are DeepSpeed's, so its meaning is DeepSpeed's too; None without one."""
    block = strategy.document.get("scheduler")
    if not block:
        return None
    from deepspeed.runtime import lr_schedules

    return getattr(lr_schedules, block["type"])(optimizer, **block["params"])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, or all of one that is not split."""
    part: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def _bytes(tensors: list[Any]) -> int:
    return tensor_bytes(_local(tensor) for tensor in tensors if torch.is_tensor(tensor))
