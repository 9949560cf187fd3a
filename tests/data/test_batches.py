"""Batches: the samples of a step depend on seed, global batch and step alone, and evaluation counts each token once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lm_scale.arguments import DataArguments, UserError
from lm_scale.data.batches import EvalBatches, Samples, TrainBatches
from lm_scale.data.tokens import Tokens, prepare

END = 0


def tokens(lengths: list[int], labelled: list[int] | None = None, with_bytes: bool = False) -> Tokens:
    """Documents of these lengths, ids counting up from 1 and each ended by 0, which counts in its length."""
    ids, number = [], 1
    for length in lengths:
        ids += [*range(number, number + length - 1), END]
        number += length - 1
    return Tokens(
        name="text",
        ids=np.array(ids, np.uint16),
        offsets=np.cumsum([0, *lengths]),
        labelled=None if labelled is None else np.array(labelled, np.uint8),
        bytes=np.array([3 * (token != END) for token in ids], np.uint32) if with_bytes else None,
        eos_id=END,
    )


def every(samples: Samples) -> tuple[list[list[int]], list[list[int]]]:
    batch = samples.read(np.arange(len(samples)))
    assert batch.input_ids.dtype == batch.labels.dtype == np.int64
    return batch.input_ids.tolist(), batch.labels.tolist()


def test_packed_samples_are_windows_whose_labels_are_the_next_tokens() -> None:
    split = tokens([5, 4, 4])  # 1 2 3 4 0 5 6 7 0 8 9 10 0
    inputs, labels = every(Samples(split, packing=True, seq_len=5))
    assert inputs == [[1, 2, 3, 4, 0], [5, 6, 7, 0, 8]]
    assert labels == [[2, 3, 4, 0, 5], [6, 7, 0, 8, 9]]


def test_packed_evaluation_keeps_the_rest_so_that_all_tokens_but_the_first_are_labels() -> None:
    split = tokens([5, 4, 4])
    inputs, labels = every(Samples(split, packing=True, seq_len=5, keep_partial=True))
    assert inputs[2] == [9, 10, END, END, END]
    assert labels[2] == [10, 0, -100, -100, -100]
    assert [label for row in labels for label in row if label != -100] == split.ids.tolist()[1:]
    exact = Samples(tokens([6, 5]), packing=True, seq_len=5, keep_partial=True)  # 11 tokens: two windows, no rest
    assert len(exact) == 2


def test_an_unpacked_sample_is_a_document_cut_or_padded() -> None:
    inputs, labels = every(Samples(tokens([3, 6, 5]), packing=False, seq_len=4))  # 1 2 0 | 3 4 5 6 7 0 | 8 9 10 11 0
    assert inputs == [[1, 2, END, END], [3, 4, 5, 6], [8, 9, 10, 11]]
    assert labels == [[2, 0, -100, -100], [4, 5, 6, 7], [9, 10, 11, 0]]


@pytest.mark.parametrize("packing", [True, False])
def test_tokens_without_a_label_are_inputs_but_no_labels(packing: bool) -> None:
    split = tokens([5, 4], labelled=[1, 0, 1, 1, 1, 0, 1, 1, 1])  # 1 2 3 4 0 | 5 6 7 0
    samples = Samples(split, packing=packing, seq_len=4)
    inputs, labels = every(samples)
    assert inputs[0] == [1, 2, 3, 4]
    assert labels[0] == [-100, 3, 4, 0]
    assert labels[1] == ([-100, 6, 7, 0] if packing else [6, 7, 0, -100])
    assert samples.label_count(np.array([0, 1])) == 6


@pytest.mark.parametrize("packing", [True, False])
def test_every_world_size_sees_the_same_samples_in_the_same_steps(packing: bool) -> None:
    rng = np.random.default_rng(0)
    samples = Samples(tokens(rng.integers(2, 30, 120).tolist()), packing=packing, seq_len=16)
    layouts = [
        (1, 8, 1),
        (1, 2, 4),
        (2, 4, 1),
        (2, 1, 4),
        (4, 2, 1),
        (8, 1, 1),
    ]  # data-parallel, micro-batch, accumulation
    seen = []
    for data_parallel, micro_batch, grad_accum in layouts:
        ranks = [
            TrainBatches(samples, 7, 8, micro_batch, grad_accum, data_parallel, rank) for rank in range(data_parallel)
        ]
        steps = []
        for step in range(1, 40):  # several epochs
            parts = [rank.step(step) for rank in ranks]
            rows = [
                (tuple(ids), tuple(labels))
                for part in parts
                for batch in part.micro_batches
                for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)
            ]
            counted = sum(label != -100 for _, labels in rows for label in labels)
            assert {part.label_count for part in parts} == {counted}
            assert {(part.samples, part.tokens) for part in parts} == {(8, 8 * 16)}
            assert all(len(part.micro_batches) == grad_accum for part in parts)
            steps.append(Counter(rows))
        seen.append(steps)
    assert all(steps == seen[0] for steps in seen)


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own() -> None:
    samples = Samples(tokens([2] * 24), packing=False, seq_len=1)  # document i holds the id i + 1
    batches = TrainBatches(samples, 3, 4, 4, 1, 1, 0)
    order = [batches.step(step).micro_batches[0].input_ids.ravel().tolist() for step in range(1, 13)]
    first, second = np.ravel(order[:6]).tolist(), np.ravel(order[6:]).tolist()
    assert sorted(first) == sorted(second) == list(range(1, 25))
    assert first != second
    assert first != sorted(first)
    assert batches.samples_in_epoch == 24


def test_a_step_read_after_a_restart_is_the_same_and_another_seed_is_not() -> None:
    samples = Samples(tokens([2] * 50), packing=False, seq_len=1)

    def at(step: int, seed: int) -> list[int]:
        return TrainBatches(samples, seed, 8, 8, 1, 1, 0).step(step).micro_batches[0].input_ids.ravel().tolist()

    running = TrainBatches(samples, 1, 8, 8, 1, 1, 0)
    series = [running.step(step).micro_batches[0].input_ids.ravel().tolist() for step in range(1, 15)]
    assert at(9, 1) == series[8]
    assert at(14, 1) == series[13]
    assert at(9, 2) != series[8]


def test_fewer_samples_than_a_global_batch_is_one_line_with_the_numbers() -> None:
    split = tokens([5, 4, 4])
    with pytest.raises(
        UserError, match=r"too few documents for one batch: 3 with 13 tokens make 2 samples of 5 tokens"
    ):
        TrainBatches(Samples(split, True, 5), 0, 4, 2, 2, 1, 0)
    with pytest.raises(UserError, match=r"make 3 documents, a global batch takes 4"):
        TrainBatches(Samples(split, False, 5), 0, 4, 2, 2, 1, 0)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("data_parallel", [1, 2, 3, 5])
def test_evaluation_is_the_same_at_every_world_size(packing: bool, data_parallel: int) -> None:
    split = tokens([7, 3, 9, 4, 12, 2, 6], with_bytes=True)
    samples = Samples(split, packing, 4, keep_partial=True)
    ranks = [list(EvalBatches(samples, 2, data_parallel, rank)) for rank in range(data_parallel)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert all(batch.input_ids.shape == batch.labels.shape == (2, 4) for batch in batches)
    labels = sorted(label for batch in batches for row in batch.labels.tolist() for label in row if label != -100)
    if packing:
        expected = split.ids.tolist()[1:]
    else:
        expected = [int(token) for number in range(7) for token in split.document(number)[1:5]]
    assert labels == sorted(expected)
    assert sum(batch.label_count for batch in batches) == len(expected)
    assert sum(batch.label_bytes or 0 for batch in batches) == 3 * sum(token != END for token in expected)


def test_real_text_goes_through_to_evaluation_bytes(jsonl: Path, texts: list[str], tmp_path: Path) -> None:
    files = prepare(DataArguments(dataset=str(jsonl), cache_dir=str(tmp_path / "cache"), eval_docs=40), None)
    assert files.eval.bytes is not None
    batches = EvalBatches(Samples(files.eval, True, 64, keep_partial=True), 4, 1, 0)
    first = int(files.eval.bytes[0])  # the first token has no position before it that could predict it
    assert sum(batch.label_bytes or 0 for batch in batches) == len("".join(texts[:40]).encode()) - first
