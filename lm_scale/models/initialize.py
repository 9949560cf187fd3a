"""New weights from the seed alone: the same at every world size, stage, engine and device, partitioned or not.

The model's own `_init_weights` prescribes every distribution; only where its numbers come from is replaced. Each
parameter is drawn from a generator of its own, seeded by the seed and the parameter's name, on the CPU and in fp32, and
copied to wherever and in whatever precision the parameter is.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]
"""Makes partitioned parameters whole while the context lasts and keeps what was written; the engine has one."""

Primitive = Callable[..., Tensor]

_RANDOM = (
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "orthogonal_",
    "sparse_",
)


def initialize(model: PreTrainedModel, seed: int, gather: Gather | None = None) -> None:
    """Give every parameter and buffer its first value. The model must have been built without initialisation.

    One module's parameters are gathered at a time. Tied parameters must be tied already, so that they are drawn once,
    under the name that comes first. Draws on the CPU: about 100 million numbers a second.
    """
    _Initializer(model, seed, gather).run()


class _Initializer:
    def __init__(self, model: PreTrainedModel, seed: int, gather: Gather | None) -> None:
        self.model = model
        self.seed = seed
        self.gather = gather
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.drawn: set[int] = set()
        self.module = ""
        self.unnamed_draws = 0

    def run(self) -> None:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self._primitives_replaced():
            self._visit(self.model, "", self.model)
            for name, module in self.model.named_modules():
                self._torch_default(name, module)

    def _visit(self, module: nn.Module, name: str, owner: PreTrainedModel) -> None:
        """Children first, each by the innermost model around it: the order of transformers' `initialize_weights`."""
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child_name, child in module.named_children():
            self._visit(child, f"{name}.{child_name}" if name else child_name, owner)
        with self._entered(module, name):
            owner._init_weights(module)  # type: ignore[no-untyped-call]

    def _torch_default(self, name: str, module: nn.Module) -> None:
        """A module of torch's that `_init_weights` left alone: torch would have drawn its default when it was made."""
        own = list(module.parameters(recurse=False))
        reset = getattr(module, "reset_parameters", None)
        if own and callable(reset) and not any(id(parameter) in self.drawn for parameter in own):
            with self._entered(module, name):
                reset()

    @contextmanager
    def _entered(self, module: nn.Module, name: str) -> Iterator[None]:
        self.module, self.unnamed_draws = name, 0
        # For what an `_init_weights` draws without the primitives (torch.rand): the global generator, seeded a module.
        torch.default_generator.manual_seed(self._seed_of(name))
        with self._whole(list(module.parameters(recurse=False))):
            yield

    def _whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """The parameters made whole; those that already are (an outer context gathered them) are left alone."""
        parted = [parameter for parameter in parameters if _is_parted(parameter)]
        return self.gather(parted) if self.gather and parted else nullcontext()

    @contextmanager
    def _primitives_replaced(self) -> Iterator[None]:
        """Every initialisation primitive, in each place where transformers or a model's own code finds it."""
        originals = cast(dict[str, Primitive], initialization.TORCH_INIT_FUNCTIONS)
        replaced = {name: self._primitive(name, function) for name, function in originals.items()}
        modules = [sys.modules[name] for name in initialization.TORCH_MODULES_TO_PATCH if name in sys.modules]
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(initialization.TORCH_INIT_FUNCTIONS, replaced))
            copy = self._primitive("copy_", initialization.copy_)
            stack.enter_context(mock.patch.object(initialization, "copy_", copy))
            for module, (name, function) in itertools.product(modules, replaced.items()):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, function))
            for name in ("normal_", "uniform_"):
                method = getattr(torch.Tensor, name)
                stack.enter_context(mock.patch.object(torch.Tensor, name, self._method(method)))
            yield

    def _primitive(self, name: str, function: Primitive) -> Primitive:
        def draw(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # `_init_weights` of a parent may set a child's parameter (GPT-2's c_proj), which is not gathered then.
            with self._whole([tensor] if isinstance(tensor, nn.Parameter) else []):
                self.drawn.add(id(tensor))
                if name not in _RANDOM:
                    return function(tensor, *args, **kwargs)
                kwargs["generator"] = self._generator(tensor)
                return tensor.copy_(function(torch.empty(tensor.shape, dtype=torch.float32), *args, **kwargs))

        return draw

    def _method(self, method: Primitive) -> Primitive:
        """`tensor.normal_()` as older model code calls it; a call with a generator comes from a primitive."""

        def draw(tensor: Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
            if generator is not None:
                return method(tensor, *args, generator=generator, **kwargs)
            self._mark(tensor)
            fresh = torch.empty(tensor.shape, dtype=torch.float32)
            return tensor.copy_(method(fresh, *args, generator=self._generator(tensor), **kwargs))

        return draw

    def _mark(self, tensor: Tensor) -> None:
        """Remember the parameter that `tensor` is the data of."""
        module = self.model.get_submodule(self.module)
        for parameter in module.parameters():
            if parameter.data_ptr() == tensor.data_ptr():
                self.drawn.add(id(parameter))

    def _generator(self, tensor: Tensor) -> torch.Generator:
        name = self.names.get(id(tensor))
        if name is None:  # a view of a parameter or a buffer: told apart by its place in the module's sequence of draws
            name = f"{self.module}#{self.unnamed_draws}"
            self.unnamed_draws += 1
        return torch.Generator().manual_seed(self._seed_of(name))

    def _seed_of(self, name: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1  # manual_seed takes a signed number of 64 bits


def _is_parted(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds the parameter in parts and it is not whole at this moment (its tensor is empty then)."""
    return hasattr(parameter, "ds_shape") and parameter.shape != parameter.ds_shape
