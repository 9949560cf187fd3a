"""The batch triple is solved as DeepSpeed requires, or refused with numbers that would do."""

from __future__ import annotations

import pytest

from lm_scale.arguments import UserError
from lm_scale.strategy.batch import solve


@pytest.mark.parametrize(
    ("given", "ranks", "solved"),
    [
        ((None, None, None), 2, (8, 1, 16)),
        ((3, None, None), 2, (3, 1, 6)),
        ((None, 5, None), 2, (8, 5, 80)),
        ((4, 2, None), 4, (4, 2, 32)),
        ((4, None, 64), 4, (4, 4, 64)),
        ((None, 2, 64), 4, (8, 2, 64)),
        ((4, 4, 64), 4, (4, 4, 64)),
        ((None, None, 64), 1, (8, 8, 64)),
        ((None, None, 64), 4, (8, 2, 64)),
        ((None, None, 6), 2, (3, 1, 6)),
        ((None, None, 22), 2, (1, 11, 22)),
    ],
)
def test_any_members_give_the_others(
    given: tuple[int | None, int | None, int | None], ranks: int, solved: tuple[int, int, int]
) -> None:
    batch = solve(*given, ranks)
    assert (batch.micro_batch, batch.grad_accum, batch.global_batch) == solved


@pytest.mark.parametrize(
    ("given", "ranks", "words"),
    [
        ((None, None, 7), 2, "use 6 or 8"),
        ((4, None, 12), 2, "use 8 or 16"),
        ((None, 3, 8), 2, "use 6 or 12"),
        ((2, 2, 16), 2, "= 8"),
        ((8, None, 4), 1, "use 8"),
        ((0, None, None), 1, "at least 1"),
        ((None, None, -4), 1, "at least 1"),
    ],
)
def test_the_impossible_is_refused_with_what_would_do(
    given: tuple[int | None, int | None, int | None], ranks: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        solve(*given, ranks)
