"""Storages that nobody holds by name: what they are for, from the function of DeepSpeed's that allocated them."""

from __future__ import annotations

from types import FrameType

from lm_scale.engines.rehearsal.timeline import Item

_ITEMS = {
    ("zero/stage_1_and_2.py", "setup_buckets"): Item("reduce_buckets", "device"),
}
_MODELS = ("/transformers/", "/lm_scale/models/")


def item_of(frame: FrameType | None) -> Item | None:
    """What the nearest function of DeepSpeed's on the stack allocates for; None where the model stands before it."""
    while frame is not None:
        file = frame.f_code.co_filename
        if "/deepspeed/" in file:
            parts = file.rsplit("/", 2)
            return _ITEMS.get((f"{parts[-2]}/{parts[-1]}", frame.f_code.co_name))
        if any(model in file for model in _MODELS):
            return None
        frame = frame.f_back
    return None
