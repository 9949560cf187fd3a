"""The shapes are transformers' own, evaluated so that no step is wasted on a rate of zero."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from lm_scale.arguments import PretrainArguments, UserError
from lm_scale.training.limits import Limits, check


def limits(steps_per_epoch: float = 1000.0, **given: object) -> Limits:
    return Limits.of(PretrainArguments(**given), steps_per_epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_rates_are_those_of_transformers(shape: str) -> None:
    """After the rise both give the same rate at the same step; during it ours is the one a step later."""
    steps, warmup, peak = 40, 8, 3e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(shape, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    theirs = []
    for _ in range(steps + 1):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    run = limits(max_steps=steps, warmup_steps=warmup, lr_scheduler_type=shape)
    ours = [run.learning_rate(peak, step, elapsed_s=0.0) for step in range(1, steps + 1)]
    rising = 0 if shape == "constant" else warmup
    assert ours[:rising] == pytest.approx(theirs[1 : rising + 1])
    assert ours[rising:] == pytest.approx(theirs[rising:steps])
    assert min(ours) > 0


def test_under_a_budget_the_rate_follows_the_clock() -> None:
    run = limits(budget="100s", lr_scheduler_type="linear", warmup_steps=0.1)
    assert run.planned_steps is None
    assert run.learning_rate(1.0, 7, elapsed_s=5.0) == pytest.approx(0.5)
    assert run.learning_rate(1.0, 8, elapsed_s=10.0) == pytest.approx(1.0)
    assert run.learning_rate(1.0, 9, elapsed_s=55.0) == pytest.approx(0.5)
    assert run.learning_rate(1.0, 99, elapsed_s=110.0) == 0.0
    assert run.learning_rate(1.0, 1, elapsed_s=0.0) > 0


def test_a_run_ends_at_its_steps_or_at_its_budget_whichever_is_first() -> None:
    run = limits(budget="10s", max_steps=5)
    assert run.status(4, 9.9) is None
    assert run.status(5, 1.0) == "completed"
    assert run.status(4, 10.0) == "budget"


@pytest.mark.parametrize(("given", "share"), [(0.1, 0.1), (4.0, 0.1), (0.0, 0.0), (None, 0.05), (400.0, 1.0)])
def test_warmup_below_one_is_a_share(given: float | None, share: float) -> None:
    assert limits(max_steps=40, warmup_steps=given).warmup == pytest.approx(share)


def test_without_a_length_the_run_is_an_epoch() -> None:
    assert limits(steps_per_epoch=123.9).planned_steps == 123
    assert limits(steps_per_epoch=100.0, num_train_epochs=2.5).planned_steps == 250


@pytest.mark.parametrize(
    "given",
    [
        {"max_steps": 0},
        {"eval_steps": 0},
        {"save_steps": -1},
        {"num_train_epochs": 0.0},
        {"budget": "soon"},
        {"budget": "0s"},
        {"budget": "10s", "warmup_steps": 20.0},
        {"max_steps": 9, "warmup_steps": -1.0},
        {"max_steps": 9, "warmup_steps": 1.0, "warmup_ratio": 0.1},
        {"sample_tokens": -1},
    ],
)
def test_lengths_that_cannot_be_meant_are_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"--{next(reversed(given)).replace('warmup_ratio', 'warmup_steps')}"):
        check(PretrainArguments(**given))  # type: ignore[arg-type]
