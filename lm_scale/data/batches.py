"""Tokens to batches: which samples a step holds, and on which rank. A function of seed, global batch and step alone.

A packed sample is a window of the tokens; an unpacked one is a document, cut to `seq_len` or padded. Labels are shifted
already: `labels[b, t]` is the token that follows `input_ids[b, t]`, or -100 where there is none to learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_scale.arguments import UserError
from lm_scale.data.pretokenized import IGNORED_LABEL
from lm_scale.data.tokens import Tokens

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `input_ids` and `labels`, both int64 [micro_batch, seq_len]."""

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepBatches:
    """One step of one rank: its `grad_accum` micro-batches, and what the whole global batch holds, over all ranks."""

    micro_batches: list[Batch]
    label_count: int
    samples: int
    tokens: int


@dataclass(frozen=True)
class EvalBatch(Batch):
    """A micro-batch of evaluation: its labels, and the UTF-8 bytes they cover (None where that is not known)."""

    label_count: int
    label_bytes: int | None


class Samples:
    """The samples of one split. Training drops the last, partial window of packed tokens; evaluation pads it."""

    def __init__(self, tokens: Tokens, packing: bool, seq_len: int, keep_partial: bool = False) -> None:
        self.tokens = tokens
        self.packing = packing
        self.seq_len = seq_len
        self._padding = tokens.eos_id or 0
        windows, rest = divmod(len(tokens.ids) - 1, seq_len)
        self._count = (windows + (keep_partial and rest > 0)) if packing else tokens.docs

    def __len__(self) -> int:
        return self._count

    def label_count(self, indices: Indices) -> int:
        """Positions of these samples that carry a label."""
        if self.tokens.labelled is None:
            starts, ends = self._ranges(indices)
            return int((ends - starts - 1).sum())
        positions, exists = self._positions(indices)
        return int(np.count_nonzero(self.tokens.labelled[positions[:, 1:]] & exists[:, 1:]))

    def read(self, indices: Indices) -> Batch:
        """These samples, [len(indices), seq_len] each."""
        positions, exists = self._positions(indices)
        ids = self.tokens.ids[positions].astype(np.int64)
        ids[~exists] = self._padding
        labels = ids[:, 1:].copy()
        labels[~exists[:, 1:]] = IGNORED_LABEL
        if self.tokens.labelled is not None:
            labels[self.tokens.labelled[positions[:, 1:]] == 0] = IGNORED_LABEL
        # The last token of a document is a label alone; as an input it would only be more padding.
        inputs = np.where(exists[:, 1:], ids[:, :-1], self._padding)
        return Batch(inputs, labels)

    def label_bytes(self, indices: Indices) -> int | None:
        """UTF-8 bytes that the labels of these samples cover."""
        if self.tokens.bytes is None:
            return None
        positions, exists = self._positions(indices)
        return int(self.tokens.bytes[positions[:, 1:]][exists[:, 1:]].sum())

    def _ranges(self, indices: Indices) -> tuple[Indices, Indices]:
        """Where the tokens of each sample begin and end: at most seq_len + 1 of them, the inputs and the last label."""
        if self.packing:
            starts, ends = indices * self.seq_len, np.full(len(indices), len(self.tokens.ids))
        else:
            starts, ends = self.tokens.offsets[indices], self.tokens.offsets[indices + 1]
        return starts, np.minimum(ends, starts + self.seq_len + 1)

    def _positions(self, indices: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Token positions, [len(indices), seq_len + 1], and whether the sample has that many tokens."""
        starts, ends = self._ranges(indices)
        positions = starts[:, None] + np.arange(self.seq_len + 1)
        exists = positions < ends[:, None]
        return np.where(exists, positions, 0), exists


class Order:
    """Which sample stands at which place of the endless stream of epochs, each in an order of its own."""

    def __init__(self, n_samples: int, seed: int) -> None:
        self._n = n_samples
        self._seed = seed
        self._permutations: dict[int, npt.NDArray[Any]] = {}  # of the epochs in use: one or two

    def samples(self, first: int, count: int) -> Indices:
        """The samples at the places `first` to `first + count - 1`."""
        places = np.arange(first, first + count)
        epochs = places // self._n
        chosen = np.empty(count, np.int64)
        kept, self._permutations = self._permutations, {}
        for epoch in np.unique(epochs).tolist():
            permutation = kept[epoch] if epoch in kept else self._permutation(epoch)
            self._permutations[epoch] = permutation
            here = epochs == epoch
            chosen[here] = permutation[places[here] % self._n]
        return chosen

    def _permutation(self, epoch: int) -> npt.NDArray[Any]:
        samples: npt.NDArray[Any] = np.arange(self._n, dtype=np.uint32 if self._n <= 2**32 else np.int64)
        np.random.Generator(np.random.PCG64([self._seed, epoch])).shuffle(samples)
        return samples


class TrainBatches:
    """The batches of one data-parallel rank. A step is read in a thread while the step before it runs.

    Raises:
        UserError: the split has fewer samples than one global batch.
    """

    def __init__(
        self,
        samples: Samples,
        seed: int,
        global_batch: int,
        micro_batch: int,
        grad_accum: int,
        data_parallel: int,
        data_rank: int,
    ) -> None:
        assert global_batch == micro_batch * grad_accum * data_parallel
        assert 0 <= data_rank < data_parallel
        if len(samples) < global_batch:
            raise UserError(_too_few(samples, global_batch))
        self.samples = samples
        self.samples_in_epoch = len(samples)
        self._order = Order(len(samples), seed)
        self._layout = (grad_accum, data_parallel, micro_batch)
        self._global_batch = global_batch
        self._data_rank = data_rank
        self._executor = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[StepBatches]] | None = None

    def step(self, step: int) -> StepBatches:
        """The batches of a step; the first step is 1."""
        ahead, self._ahead = self._ahead, None
        result = ahead[1] if ahead and ahead[0] == step else self._executor.submit(self._read, step)
        batches = result.result()
        self._ahead = (step + 1, self._executor.submit(self._read, step + 1))
        return batches

    def _read(self, step: int) -> StepBatches:
        chosen = self._order.samples((step - 1) * self._global_batch, self._global_batch)
        mine = chosen.reshape(self._layout)[:, self._data_rank]
        return StepBatches(
            micro_batches=[self.samples.read(indices) for indices in mine],
            label_count=self.samples.label_count(chosen),
            samples=self._global_batch,
            tokens=self._global_batch * self.samples.seq_len,
        )


class EvalBatches:
    """The evaluation split, each sample on one rank; every rank yields as many batches, the last ones may be empty.

    A batch always has the full shape: rows without a sample are padding without labels.
    """

    def __init__(self, samples: Samples, micro_batch: int, data_parallel: int, data_rank: int) -> None:
        self.samples = samples
        self._micro_batch = micro_batch
        self._first = data_rank * micro_batch
        self._stride = data_parallel * micro_batch

    def __len__(self) -> int:
        return -(-len(self.samples) // self._stride)

    def __iter__(self) -> Iterator[EvalBatch]:
        for number in range(len(self)):
            start = self._first + number * self._stride
            indices = np.arange(start, min(start + self._micro_batch, len(self.samples)))
            batch = self.samples.read(indices)
            missing = ((0, self._micro_batch - len(indices)), (0, 0))
            yield EvalBatch(
                input_ids=np.pad(batch.input_ids, missing, constant_values=self.samples.tokens.eos_id or 0),
                labels=np.pad(batch.labels, missing, constant_values=IGNORED_LABEL),
                label_count=int((batch.labels != IGNORED_LABEL).sum()),
                label_bytes=self.samples.label_bytes(indices),
            )


def _too_few(samples: Samples, global_batch: int) -> str:
    tokens = samples.tokens
    unit = f"samples of {samples.seq_len} tokens" if samples.packing else "documents"
    return (
        f"--dataset {tokens.name}: too few documents for one batch: {tokens.docs} with {len(tokens.ids)} tokens make "
        f"{len(samples)} {unit}, a global batch takes {global_batch}; give more text, or a smaller batch or --seq_len"
    )
