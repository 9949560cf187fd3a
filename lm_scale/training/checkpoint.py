"""Checkpoints that are either whole or not there.

DeepSpeed writes each rank's files straight to their final names and moves its `latest` pointer before the other ranks
have finished, so a kill leaves a checkpoint that looks good and is not. Here a checkpoint is written under a name that
nobody reads, every file is synced and listed with size and SHA-256 in `manifest.json`, and only then is the folder
renamed to its final name. Before one is read, all ranks check it against the manifest and agree.

    checkpoints/step-00000040/   the engine's files (DeepSpeed's tag `engine`), rng-<rank>.pt, state.json, manifest.json
    checkpoints/final/           the trained weights as a Hugging Face directory (`weights.py`)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lm_scale.arguments import UserError

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"


def save(folder: Path, step: int, state: dict[str, Any], write_engine: Callable[[Path], None]) -> Path:
    """Write and publish the checkpoint of `step`; all ranks call it.

    Args:
        folder: the run's `checkpoints`.
        state: what the loop needs to go on (JSON).
        write_engine: writes the engine's files into a folder; collective.
    """
    tag = f"step-{step:08d}"
    unfinished = folder / f"{tag}{UNFINISHED}"
    if _rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    _barrier()
    write_engine(unfinished)
    torch.save(_random_state(), unfinished / f"rng-{_rank()}.pt")
    if _rank() == 0:
        (unfinished / "state.json").write_text(json.dumps({"step": step, **state}, indent=2))
    _barrier()
    manifest = _merge(_describe(unfinished, _own_share(_files(unfinished)), sync=True))
    if _rank() == 0:
        _write_synced(unfinished / MANIFEST, json.dumps(manifest, indent=2))
        _take_its_name(unfinished, folder / tag)
    _barrier()
    return folder / tag


def newest(folder: Path) -> Path:
    """The newest checkpoint in `folder` that all ranks find whole.

    Raises:
        UserError: there is none. A run that was asked to go on never starts afresh instead.
    """
    found = (path for path in folder.glob("step-*") if path.suffix != UNFINISHED and (path / MANIFEST).is_file())
    candidates = sorted(found, reverse=True)
    for path in candidates:
        if not _damaged(path):
            return path
    if candidates:
        raise UserError(
            f"{folder}: no checkpoint passes its own manifest ({len(candidates)} damaged); start without --resume"
        )
    raise UserError(f"{folder}: no checkpoint to go on from; was the run started with --save_steps?")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save` was given, with `step`."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return state


def restore_random_state(checkpoint: Path) -> None:
    """Set this rank's random generators to where they were when the checkpoint was written."""
    state = torch.load(checkpoint / f"rng-{_rank()}.pt", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "device" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["device"])


def publish(unfinished: Path, final: Path) -> None:
    """Sync every file of a folder and give it its final name, replacing what had that name. One process calls it."""
    _describe(unfinished, _files(unfinished), sync=True)
    _take_its_name(unfinished, final)


def _take_its_name(unfinished: Path, final: Path) -> None:
    """Rename; what had the name is moved aside first and removed last, so that a kill leaves one of the two."""
    replaced = final.with_name(f"{final.name}.replaced{UNFINISHED}")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.rename(final, replaced)
    os.rename(unfinished, final)
    _sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["device"] = torch.cuda.get_rng_state()
    return state


def _files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def _own_share(files: list[str]) -> list[str]:
    return files[_rank() :: _world_size()]


def _describe(folder: Path, files: list[str], sync: bool = False) -> dict[str, dict[str, Any]]:
    described = {}
    for name in files:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sync:
                os.fsync(file.fileno())
            described[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
    return described


def _damaged(checkpoint: Path) -> bool:
    """Whether any rank finds a file of its share missing or changed; all ranks get the same answer."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    share = _own_share(sorted(manifest))
    whole = all((checkpoint / name).is_file() for name in share)
    whole = whole and _describe(checkpoint, share) == {name: manifest[name] for name in share}
    return not all(_merge({str(_rank()): whole}).values())


def _merge(own: dict[str, Any]) -> dict[str, Any]:
    if _world_size() == 1:
        return own
    everyone: list[Any] = [None] * _world_size()
    dist.all_gather_object(everyone, own)
    return {key: value for part in everyone for key, value in part.items()}


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if _world_size() > 1:
        dist.barrier()
