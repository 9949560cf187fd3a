"""Operators without their work: results are allocated as they would be, and large tensors are neither read nor written.

Memory that a process allocates and never touches takes no pages, so a model larger than the machine goes through its
real steps here. Small tensors (losses, norms, flags, scales) are computed; where one would come of a large tensor it is
filled with a number that keeps what follows finite and every test for overflow quiet: one, but zero for extremes,
integers and flags (any is infinite, where all are finite is one). Only for a CPU and a process group that is a fake.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import torch

from lm_scale.engines.rehearsal.timeline import tensors

LARGE_BYTES = 2**20
"""A storage of this size or more is left untouched."""

RESERVED_BYTES = 2**30
"""From here on the C library might be refused, though nothing is touched."""

MAP_NORESERVE = 0x4000
"""Linux's, which Python's `mmap` names from 3.13 on."""

_EXTREMES = ("max", "amax", "min", "amin")
"""DeepSpeed asks for the largest of its flags for infinite gradients, as floats (`has_inf_or_nan`)."""

_SHAPES_ONLY = ("_unsafe_view", "_reshape_alias", "lift_fresh", "set_", "resize_", "squeeze_", "unsqueeze_", "t_")
"""Operators that change or share a tensor's shape and not its contents, beside those that are declared views."""


def perform(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator, computed where it touches no large tensor."""
    onto_meta = str(kwargs.get("device")) == "meta"
    if func.is_view or func._opname in _SHAPES_ONLY or onto_meta:
        return func(*args, **kwargs)
    given = tensors([*args, *kwargs.values()])
    if any(_is_large(tensor) for tensor in given):
        if func is torch.ops.aten._local_scalar_dense.default:
            return _quiet(func, torch.empty((), dtype=args[0].dtype)).item()
        return _left_out(func, args, kwargs)
    if func._schema.returns and (not given or func._opname.startswith("new_")):
        return _left_out(func, args, kwargs, if_large=True)
    return func(*args, **kwargs)


def communicate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A collective of `torch.ops.c10d`, which the fake group performs by copying unless a tensor is large."""
    if not any(_is_large(tensor) for tensor in tensors(args)):
        return func(*args, **kwargs)
    result = func(*_emptied(args), **kwargs)
    return result if len(func._schema.returns) == 1 else (args[0], *result[1:])


def _left_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], if_large: bool = False) -> Any:
    """The operator's results: the arguments it would have written to, and new tensors of the shapes it would make."""
    returns = func._schema.returns
    written = list(_written(func, args, kwargs))
    if func._opname == "copy_" or func._overloadname.endswith("out"):
        for tensor in tensors(written):  # overwritten whole; what is changed in place keeps its numbers
            if not _is_large(tensor):
                _quiet(func, tensor)
    fresh: Iterator[Any] = iter(())
    if any(one.alias_info is None for one in returns):
        try:
            shapes = func(*_on_meta(args), **{**_on_meta(kwargs), **_on_meta_device(kwargs)})
        except (NotImplementedError, RuntimeError):  # a shape that depends on the numbers
            return func(*args, **kwargs)
        if if_large and not any(_nbytes(tensor) >= LARGE_BYTES for tensor in tensors(shapes)):
            return func(*args, **kwargs)
        fresh = iter(shapes if len(returns) > 1 else [shapes])
    aliases = iter(written)
    results = [_allocated(func, next(fresh)) if one.alias_info is None else next(aliases) for one in returns]
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, list | tuple):
        return type(value)(_on_meta(element) for element in value)
    if isinstance(value, dict):
        return {key: _on_meta(element) for key, element in value.items()}
    return value


def _on_meta_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What keeps the result on the meta device; it is pinned by nobody there."""
    replaced = {"device": torch.device("meta")} if kwargs.get("device") is not None else {}
    return {**replaced, **({"pin_memory": False} if kwargs.get("pin_memory") else {})}


def _emptied(value: Any) -> Any:
    """The tensors of a collective without their elements: the fake group has nothing to copy then."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided((0,), (1,), dtype=value.dtype, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(_emptied(element) for element in value)
    return value


def _allocated(func: Any, shape: Any) -> Any:
    if isinstance(shape, list | tuple):
        return type(shape)(_allocated(func, element) for element in shape)
    if not isinstance(shape, torch.Tensor):
        return shape
    if _nbytes(shape) >= RESERVED_BYTES:
        return _reserved(shape)
    result = torch.empty_strided(shape.size(), shape.stride(), dtype=shape.dtype, device="cpu")
    return result if _is_large(result) else _quiet(func, result)


def _reserved(shape: torch.Tensor) -> torch.Tensor:
    """Addresses without memory behind them, which the kernel gives out beyond what the machine has (mmap(2))."""
    addresses = mmap.mmap(-1, _nbytes(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(addresses, dtype=shape.dtype).as_strided(shape.size(), shape.stride())


def _quiet(func: Any, result: torch.Tensor) -> torch.Tensor:
    """Filled with what a small result of large tensors is taken to be."""
    one = result.dtype.is_floating_point or func._opname == "all"
    return result.fill_(one and func._opname not in _EXTREMES)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _is_large(tensor: torch.Tensor) -> bool:
    return _nbytes(tensor) >= LARGE_BYTES
