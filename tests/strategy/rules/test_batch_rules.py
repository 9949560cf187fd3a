"""The batch triple in a file: an error exactly where DeepSpeed refuses, with numbers that would do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from auto_and_batch_worker import ACCEPTED_NONSENSE, BATCHES, A, M, T, answers

from lm_scale.strategy.rules import batch
from lm_scale.strategy.rules.findings import Finding, Setting


def found(document: dict[str, Any], world_size: int | None = None) -> list[Finding]:
    return list(batch.findings(document, Setting(world_size)))


def is_refused(document: dict[str, Any], world_size: int | None = None) -> bool:
    return any(finding.severity == "error" for finding in found(document, world_size))


def test_an_error_is_where_deepspeed_refuses_and_nowhere_else() -> None:
    for (document, ranks), answer in zip(BATCHES, answers()["batches"], strict=True):
        if "auto" not in document.values():
            assert is_refused(document, ranks) == isinstance(answer, str), (document, ranks, answer)


def test_without_a_world_size_an_error_is_what_no_world_size_fits() -> None:
    for (document, ranks), answer in zip(BATCHES, answers()["batches"], strict=True):
        if isinstance(answer, list):
            assert not is_refused(document), (document, ranks)
    assert is_refused({T: 4, A: 8})
    assert is_refused({T: 32, M: 5})
    assert is_refused({T: 20_001, M: 20, A: 100})
    assert is_refused({})


def test_a_batch_that_deepspeed_takes_and_no_step_can_have_is_refused() -> None:
    for (document, ranks), answer in zip(ACCEPTED_NONSENSE, answers()["nonsense"], strict=True):
        assert isinstance(answer, list)
        assert is_refused(document, ranks)


def test_auto_beside_a_number_is_what_trainer_compares() -> None:
    assert answers()["trainer"][0]["mixed"] == [
        "- ds train_micro_batch_size_per_gpu=7 vs hf per_device_train_batch_size=3"
    ]
    note = next(finding for finding in found({T: "auto", M: 7, A: "auto"}) if finding.rule == "batch-mixed-auto")
    assert (note.path, note.value, note.severity) == (M, 7, "note")


@pytest.mark.parametrize(
    ("document", "ranks"),
    [
        ({T: 30}, 4),
        ({T: 2}, 4),
        ({T: 32, M: 4}, 3),
        ({T: 32, A: 5}, 2),
        ({T: 20_000, M: 20, A: 100}, 8),
        ({T: 30, M: 7, A: 2}, 4),
        ({T: 1024, M: 24}, 8),
    ],
)
def test_each_number_of_a_fix_alone_makes_the_triple_fit(document: dict[str, int], ranks: int) -> None:
    (error,) = found(document, ranks)
    groups = re.findall(r"(\w+) (\d+(?: or \d+)*)", error.fix)
    offers = [(key, value) for key, values in groups for value in values.split(" or ")]
    assert offers
    for key, value in offers:
        changed = {**document, key: int(value)}
        micro, accum, total = (changed.get(one) for one in (M, A, T))
        assert total is not None
        assert total % ((micro or 1) * (accum or 1) * ranks) == 0
        assert not is_refused(changed, ranks), (key, value)


@pytest.mark.parametrize(
    ("document", "sizes"),
    [
        ({T: 32, M: 4}, "world sizes 1, 2, 4 and 8 alone"),
        ({T: 20_000, M: 20, A: 100}, "world size 10 alone"),
        ({T: 32, M: 4, "pipeline": {"stages": 2}}, "world sizes 2, 4, 8 and 16 alone"),
        ({T: 20_000}, "world sizes 1, 2, 4, 5, 8, 10 ... and 20000 alone"),
    ],
)
def test_the_world_sizes_that_fit_are_named(document: dict[str, Any], sizes: str) -> None:
    (note,) = found(document)
    assert note.severity == "note"
    assert sizes in note.message


def test_ranks_that_share_a_micro_batch_divide_the_world() -> None:
    assert answers()["sequence_parallel_total"] == [2.0]  # 4 samples on half a data-parallel rank
    triple = {T: 16, M: 4, A: 2}
    for layout in ({"pipeline": {"stages": 2}}, {"tensor_parallel": {"autotp_size": 2}}, {"sequence_parallel_size": 2}):
        assert not is_refused({**triple, **layout}, 4)
        assert is_refused({**triple, **layout}, 2)
        assert is_refused({**triple, **layout}, 5)


def test_a_batch_that_needs_no_world_size_is_not_spoken_of() -> None:
    assert found({M: 4}) == found({M: 4, A: 2}) == found({T: "auto", M: "auto", A: "auto"}) == []
