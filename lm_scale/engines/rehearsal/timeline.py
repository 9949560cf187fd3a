"""Every tensor's storage from its first use to its end, and what the bytes alive at a moment were.

Allocations are logged as they happen and explained afterwards: what a storage was for is often known only later, when
it is found in the optimizer's hands or still alive after the forward pass.
"""

from __future__ import annotations

import bisect
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

Phase = tuple[int, str]
"""A step (0 is the start) and `init`, `forward`, `backward` or `step` in it."""


class Item(NamedTuple):
    """What a storage is for, and where it would lie on a machine with an accelerator: `device` or `host`."""

    name: str
    where: str


@dataclass
class Storage:
    """One storage: `born` and `died` are moments (indices of the log); `item` what it was found to be."""

    nbytes: int
    born: int
    on_host: bool
    died: int | None = None
    item: Item | None = None
    site: Item | None = None


@dataclass
class Fullest:
    """A stretch of the log: live bytes when it ended, the most at once, and the items when the device was fullest."""

    end_bytes: int = 0
    peak_bytes: int = 0
    peak_device_bytes: int = 0
    peak_host_bytes: int = 0
    items: Counter[Item] = field(default_factory=Counter)


class Timeline:
    """The log. With `on_accelerator` a storage on the CPU lies in host memory.

    Without, where device and host are one, a storage's item tells, or it was made in one of the `host_phases`, in which
    the run on an accelerator works on the host.
    """

    def __init__(self, on_accelerator: bool, host_phases: Sequence[str] = ()) -> None:
        self._on_accelerator = on_accelerator
        self._host_phases = () if on_accelerator else host_phases
        self._log: list[tuple[Storage, int]] = []
        self._live: dict[int, tuple[Storage, weakref.ref[torch.UntypedStorage]]] = {}
        self._phases: list[tuple[Phase, int, int]] = []
        self._ends: list[int] = []
        self._begin = 0

    def see(self, tensor: torch.Tensor) -> Storage | None:
        """Note the tensor's storage; returns it where it is new. A tensor of the meta device has none."""
        if tensor.is_meta:
            return None
        untyped = tensor.untyped_storage()
        key, nbytes = untyped._cdata, untyped.nbytes()
        known = self._live.get(key)
        if known is not None:
            storage = known[0]
            if storage.nbytes != nbytes:
                self._log.append((storage, nbytes - storage.nbytes))
                storage.nbytes = nbytes
            return None
        on_host = self._on_accelerator and untyped.device.type == "cpu"
        storage = Storage(nbytes, len(self._log), on_host)
        self._log.append((storage, nbytes))
        self._live[key] = (storage, weakref.ref(untyped, lambda _: self._end(key)))
        return storage

    def name(self, item: Item, tensor: torch.Tensor) -> None:
        """Say what the tensor's storage is for; the first name stays."""
        self.see(tensor)
        storage, _ = self._live.get(tensor.untyped_storage()._cdata, (None, None))
        if storage is not None and storage.item is None:
            storage.item = item

    def end_phase(self, phase: Phase) -> None:
        """What was logged since the last phase ended belongs to `phase`."""
        self._phases.append((phase, self._begin, len(self._log)))
        self._ends.append(len(self._log))
        self._begin = len(self._log)

    def fullest(self) -> dict[Phase, Fullest]:
        """Every phase of the log; repetitions of one (micro-batches) are taken together."""
        live: Counter[Item] = Counter()
        found: dict[Phase, Fullest] = {}
        for phase, begin, end in self._phases:
            stretch = found.setdefault(phase, Fullest())
            for total, device in self._replay(live, begin, end):
                stretch.peak_bytes = max(stretch.peak_bytes, total)
                stretch.peak_host_bytes = max(stretch.peak_host_bytes, total - device)
                if device > stretch.peak_device_bytes or not stretch.items:
                    stretch.peak_device_bytes, stretch.items = device, +live
            stretch.end_bytes = sum(live.values())
        return found

    def first_above(self, limit_bytes: int) -> tuple[Phase, Counter[Item]] | None:
        """The phase in which the device first held more than `limit_bytes`, and what it held then."""
        live: Counter[Item] = Counter()
        for phase, begin, end in self._phases:
            for _, device in self._replay(live, begin, end):
                if device > limit_bytes:
                    return phase, +live
        return None

    def held(self) -> Counter[Item]:
        """Live bytes by item now."""
        held: Counter[Item] = Counter()
        for storage, _ in self._live.values():
            held[self._item(storage)] += storage.nbytes
        return held

    def _replay(self, live: Counter[Item], begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Apply a stretch of the log to `live`; yields all bytes and the device's, first and after each allocation."""
        total, device = sum(live.values()), sum(count for item, count in live.items() if item.where == "device")
        yield total, device
        for storage, change in self._log[begin:end]:
            item = self._item(storage)
            live[item] += change
            total += change
            device += change if item.where == "device" else 0
            if change > 0:
                yield total, device

    def _item(self, storage: Storage) -> Item:
        """The name that a holder gave it, else that of the place that made it, else what its lifetime says."""
        item = storage.item or storage.site or self._by_lifetime(storage)
        return Item(item.name, "host") if storage.on_host else item

    def _by_lifetime(self, storage: Storage) -> Item:
        place, died = bisect.bisect_right(self._ends, storage.born), storage.died
        if place == len(self._ends):
            return Item("temporaries", "device")
        _, phase = self._phases[place][0]
        where = "host" if phase in self._host_phases else "device"
        step_ends = next((end for (_, name), _, end in self._phases[place:] if name in ("init", "step")), None)
        if step_ends is not None and (died is None or died > step_ends):
            return Item("other", where)
        survives = died is None or died > self._ends[place]
        return Item("activations" if phase == "forward" and survives else "temporaries", where)

    def _end(self, key: int) -> None:
        storage, _ = self._live.pop(key)
        storage.died = len(self._log)
        self._log.append((storage, -storage.nbytes))


def tensors(value: object) -> list[torch.Tensor]:
    """The tensors in an operator's arguments or result: the value itself, or those in its lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for element in value for tensor in tensors(element)]
    return []
