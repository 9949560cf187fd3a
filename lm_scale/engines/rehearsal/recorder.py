"""What every operator of torch passes through while a rehearsal runs: storages are logged and collectives counted."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lm_scale.engines.rehearsal import untouched
from lm_scale.engines.rehearsal.sites import item_of
from lm_scale.engines.rehearsal.timeline import Timeline, tensors
from lm_scale.engines.rehearsal.wire import Wire


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Logs into `timeline` and `wire`; `touch` False leaves out the work on large tensors (see `untouched`)."""

    def __init__(self, timeline: Timeline, wire: Wire, touch: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._timeline = timeline
        self._wire = wire
        self._touch = touch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors(args):  # made outside torch's operators, as from an array
            self._see(tensor)
        collective = func.namespace == "c10d"
        if collective:
            self._wire.record(func, args)
        if self._touch:
            result = func(*args, **kwargs)
        else:
            result = (untouched.communicate if collective else untouched.perform)(func, args, kwargs)
        for tensor in tensors(result):
            self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = self._timeline.see(tensor)
        if storage is not None:
            storage.site = item_of(sys._getframe(2))
