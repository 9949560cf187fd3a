"""Bytes that one rank sends: every collective is counted where torch dispatches it, whoever called it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._C._distributed_c10d import ProcessGroup

from lm_scale.engines.rehearsal.timeline import tensors

_OPERATORS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 0),
    "allgather_coalesced_": ("all_gather", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "alltoall_": ("all_to_all", 1),
    "alltoall_base_": ("all_to_all", 1),
    "send": ("send", 0),
}
"""Of `torch.ops.c10d`: the collective's name, and which argument holds the whole tensor."""


@dataclass
class Sent:
    """One kind of collective: see the package's docstring for the two counts of bytes."""

    calls: int = 0
    payload_bytes: int = 0
    sent_bytes: int = 0


class Wire:
    """The collectives since the last `take`."""

    def __init__(self) -> None:
        self._sent: dict[str, Sent] = {}

    def record(self, func: Any, args: tuple[Any, ...]) -> None:
        """Count a call of a `torch.ops.c10d` operator; those that carry no tensor's contents are none."""
        kind, position = _OPERATORS.get(func._opname, (None, 0))
        if kind is None:
            return
        payload = sum(tensor.nbytes for tensor in tensors(args[position]))
        ranks = _group_size(args)
        sent = self._sent.setdefault(kind, Sent())
        sent.calls += 1
        sent.payload_bytes += payload
        sent.sent_bytes += ring_bytes(kind, payload, ranks)

    def take(self) -> dict[str, dict[str, int]]:
        """The counts, which begin anew."""
        taken = {kind: asdict(sent) for kind, sent in sorted(self._sent.items())}
        self._sent = {}
        return taken


def ring_bytes(kind: str, payload_bytes: int, ranks: int) -> int:
    """What one rank sends of a collective over `payload_bytes` on a ring, rounded to whole bytes.

    Each of the n parts passes n-1 links to be gathered or to be reduced, and an all_reduce does both (Patarasuk and
    Yuan, Bandwidth optimal all-reduce algorithms, 2009).
    """
    if kind == "send":
        return payload_bytes
    return round((2 if kind == "all_reduce" else 1) * payload_bytes * (ranks - 1) / ranks)


def _group_size(args: tuple[Any, ...]) -> int:
    for argument in args:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            return int(ProcessGroup.unbox(argument).size())
    raise AssertionError("a collective without a process group")
