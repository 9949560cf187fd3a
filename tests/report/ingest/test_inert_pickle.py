"""Settings in a pickle are read and nothing of the pickle is run."""

from __future__ import annotations

import enum
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_scale.report.ingest import inert_pickle

SAMPLE = Path(__file__).parents[1] / "samples" / "trainer_state" / "zero1" / "training_args.bin"


class Colour(enum.Enum):
    RED = "red"


class Calls:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_what_they_were(protocol: int) -> None:
    value = {"a": [1, -2, 3.5, 2**70], "b": (True, None, "ä"), "c": {"d": (), "e": (1, 2, 3, 4)}, "f": 1 << 20}
    assert inert_pickle.describe(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_enumerations_member_is_described(protocol: int) -> None:
    described = inert_pickle.describe(pickle.dumps(Colour.RED, protocol))
    assert described.name.endswith("Colour")
    assert described.arguments == ("red",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_described_and_not_made(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    data = pickle.dumps({"x": Calls(f"touch {trace}")}, protocol)
    described = inert_pickle.describe(data)["x"]
    assert described.name.endswith(".system")
    assert described.arguments == (f"touch {trace}",)
    assert not trace.exists()
    pickle.loads(data)
    assert trace.exists()  # the call is a real one


def test_the_settings_of_a_training_are_read() -> None:
    state = inert_pickle.read_torch(SAMPLE).state
    assert (state["per_device_train_batch_size"], state["seed"], state["optim"].arguments) == (
        2,
        7,
        ("adamw_torch_fused",),
    )


def _damaged(data: bytes, chance: random.Random) -> Iterator[bytes]:
    for _ in range(400):
        changed = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.randrange(4)):
            if changed:
                changed[chance.randrange(len(changed))] = chance.randrange(256)
        yield bytes(changed)


def test_a_damaged_pickle_is_said_to_be_one_and_nothing_else_happens() -> None:
    data = pickle.dumps({"a": Colour.RED, "b": [1, {"c": (2.5, "text")}], "d": Calls("true")})
    for changed in _damaged(data, random.Random(0)):
        try:
            inert_pickle.describe(changed)
        except inert_pickle.NotPlainError:
            continue


def test_a_damaged_file_is_not_read(tmp_path: Path) -> None:
    data, path = SAMPLE.read_bytes(), tmp_path / "training_args.bin"
    for end in range(0, len(data), 97):
        path.write_bytes(data[:end])
        with pytest.raises(inert_pickle.NotPlainError):
            inert_pickle.read_torch(path)
    with pytest.raises(inert_pickle.NotPlainError):
        inert_pickle.read_torch(tmp_path / "missing")
