"""NVMe offload: what must be there before it starts, and a fault of DeepSpeed's that is mended from outside.

DeepSpeed 0.19.8 trains wrongly with an optimizer on NVMe at some shapes, without a word. Its asynchronous I/O opens
the swap files with O_DIRECT (`ops/csrc/aio/common/deepspeed_aio_common.cpp:269`) and never looks at the result of a
finished request (`_do_io_complete`, 112-127), so a transfer that the kernel refuses counts as done and leaves the
destination as it was. The kernel refuses an address that is no multiple of the drive's DMA alignment (512 bytes on
most) and a length that is no multiple of its block (512 or 4096 bytes). Three places ask for such transfers:

* `_swap_out_gradients` (`runtime/swap_tensor/optimizer_utils.py:256-286`) swaps each gradient partition of at least 1
  MiB on its own and has it read back to its offset in the flat buffer, which is any multiple of four bytes: Adam then
  steps on what the buffer held before.
* `swap_into_buffer` (`runtime/swap_tensor/partitioned_param_swapper.py:326-349`) checks the length of its
  destination, not its address.
* `AIO_ALIGNED_BYTES` (`runtime/swap_tensor/utils.py:15`) rounds lengths to 1024 bytes, which a drive with blocks of
  4096 bytes refuses to write.

With the mend every swapped piece begins and ends at a multiple of 4096 bytes; what is left over stays in memory, by
the path that DeepSpeed has for small gradients. Losses, norms and weights then equal those of `device: cpu` exactly.
"""

from __future__ import annotations

import ctypes.util
import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lm_scale.arguments import UserError
from lm_scale.strategy.load import get
from lm_scale.strategy.resolve import Strategy

if TYPE_CHECKING:
    import torch
    from deepspeed.runtime.swap_tensor.optimizer_utils import OptimizerSwapper
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper

DIRECT_IO_BYTES = 4096


def mend_swapping() -> None:
    """See the docstring of this file. Call it before `zero.Init` and `deepspeed.initialize`; again changes nothing."""
    import torch
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_param_swapper

    if optimizer_utils.AIO_ALIGNED_BYTES == DIRECT_IO_BYTES:
        return
    optimizer_utils.AIO_ALIGNED_BYTES = DIRECT_IO_BYTES
    partitioned_param_swapper.AIO_ALIGNED_BYTES = DIRECT_IO_BYTES
    split_tail = optimizer_utils.OptimizerSwapper._adjust_for_misaligned_lengths
    swap_into_buffer = partitioned_param_swapper.AsyncPartitionedParameterSwapper.swap_into_buffer

    def split_head_and_tail(
        self: OptimizerSwapper, tensors: Sequence[torch.Tensor], offsets: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[int]]:
        """Cut each swapped gradient at its first aligned offset, as DeepSpeed cuts it at its last."""
        pieces: list[torch.Tensor] = []
        starts: list[int] = []
        for tensor, offset in zip(tensors, offsets, strict=True):
            head = -offset % self.numel_alignment if self.is_swappable_tensor(tensor=tensor) else 0
            if head:
                pieces.append(tensor.narrow(0, 0, head))
                starts.append(offset)
            pieces.append(tensor.narrow(0, head, tensor.numel() - head))
            starts.append(offset + head)
        split: tuple[list[torch.Tensor], list[int]] = split_tail(self, pieces, starts)
        return split

    def swap_through_pool(
        self: AsyncPartitionedParameterSwapper,
        param: torch.nn.Parameter,
        dest_buffer: torch.Tensor,
    ) -> None:
        """Read a weight partition through the swapper's aligned pool, wherever it is wanted."""
        pageable = torch.empty(dest_buffer.shape, dtype=dest_buffer.dtype, device="cpu")
        swap_into_buffer(self, param, pageable)
        dest_buffer.copy_(pageable)

    optimizer_utils.OptimizerSwapper._adjust_for_misaligned_lengths = split_head_and_tail
    partitioned_param_swapper.AsyncPartitionedParameterSwapper.swap_into_buffer = swap_through_pool


def check_nvme(strategy: Strategy) -> None:
    """Make the folder of an NVMe offload and see that its library is there.

    Raises:
        UserError: `fast_init` is on (DeepSpeed gets it wrong), the path is missing from the JSON, its parent does not
            exist, it cannot be written, or libaio is absent.
    """
    for block in ("offload_optimizer", "offload_param"):
        if get(strategy.document, f"zero_optimization.{block}.device") != "nvme":
            continue
        dotted = f"zero_optimization.{block}.nvme_path"
        if get(strategy.document, f"zero_optimization.{block}.fast_init"):
            raise UserError(
                f"{strategy.path}: zero_optimization.{block}.fast_init: with NVMe DeepSpeed then trains on weights "
                "that it never read; set it to false"
            )
        stated = get(strategy.document, dotted)
        if not isinstance(stated, str):
            raise UserError(f"{strategy.path}: {dotted}: missing; name a folder on the NVMe drive")
        path = Path(stated)
        if not path.parent.is_dir():
            raise UserError(f"{strategy.path}: {dotted}: {path.parent} does not exist; mount it or name another folder")
        try:
            path.mkdir(exist_ok=True)
            probe = path / ".lm_scale_probe"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{strategy.path}: {dotted}: {path}: {error.strerror}") from None
        if ctypes.util.find_library("aio") is None or not _libaio_header():
            raise UserError(
                f"{strategy.path}: {dotted}: NVMe offload needs libaio; install the package libaio-dev "
                "(Debian, Ubuntu) or libaio-devel (Fedora, RHEL)"
            )


def claim_swap_folders(strategy: Strategy) -> list[IO[str]]:
    """Keep another run of this host off the swap folders while the returned files are open; a kill releases them.

    DeepSpeed names its swap files by rank and parameter alone: two runs in one folder overwrite each other's.

    Raises:
        UserError: another run holds a folder.
    """
    claims: list[IO[str]] = []
    blocks = (f"zero_optimization.{block}" for block in ("offload_optimizer", "offload_param"))
    stated = {
        get(strategy.document, f"{b}.nvme_path") for b in blocks if get(strategy.document, f"{b}.device") == "nvme"
    }
    for path in sorted(stated):
        claims.append(open(Path(path) / ".lm_scale_lock", "w"))  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(claims[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{strategy.path}: nvme_path {path}: another run uses it; name another folder") from None
    return claims


def _libaio_header() -> bool:
    return any((Path(prefix) / "include" / "libaio.h").exists() for prefix in ("/usr", "/usr/local"))
