"""A checkpoint is whole or is not there, and what is damaged is not read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lm_scale.arguments import UserError
from lm_scale.training import checkpoint


def write(folder: Path, step: int, content: bytes = b"weights" * 1000) -> Path:
    def engine(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "states.pt").write_bytes(content)

    return checkpoint.save(folder, step, {"elapsed_s": step / 2}, engine)


def test_the_newest_one_and_its_state_are_found(tmp_path: Path) -> None:
    write(tmp_path, 8)
    write(tmp_path, 16)
    newest = checkpoint.newest(tmp_path)
    assert newest.name == "step-00000016"
    assert checkpoint.read_state(newest) == {"step": 16, "elapsed_s": 8.0}


def test_a_save_that_was_killed_is_never_read(tmp_path: Path) -> None:
    write(tmp_path, 8)

    def dies(folder: Path) -> None:
        (folder / "states.pt").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 16, {}, dies)
    assert checkpoint.newest(tmp_path).name == "step-00000008"
    write(tmp_path, 16)
    assert checkpoint.newest(tmp_path).name == "step-00000016"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 8)
    file = write(tmp_path, 16) / "engine" / "states.pt"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[1234] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    assert checkpoint.newest(tmp_path).name == "step-00000008"


def test_no_checkpoint_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.newest(tmp_path / "checkpoints")
    (write(tmp_path, 8) / "state.json").write_text("{}")
    with pytest.raises(UserError, match="1 damaged"):
        checkpoint.newest(tmp_path)


def test_random_numbers_continue(tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.rand(5)
    path = write(tmp_path, 4)
    expected = torch.rand(3)
    torch.manual_seed(99)
    checkpoint.restore_random_state(path)
    assert torch.equal(torch.rand(3), expected)


def test_saving_a_step_again_leaves_one_whole_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 8, b"first")
    write(tmp_path, 8, b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]
    assert (checkpoint.newest(tmp_path) / "engine" / "states.pt").read_bytes() == b"second"
