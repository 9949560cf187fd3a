"""What `--model` names: a preset, a transformers `config.json`, or a model directory to continue from.

Reading a config needs no torch: the commands that only check or plan use this module too. Standard library only.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_scale.arguments import UserError

PRESETS_DIR = Path(__file__).parent / "presets"

_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx", "seq_length")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, with transformers' own JSON of it.

    `kind` says what `--model` was; `path` is the JSON file (preset, config) or the directory with the weights.
    """

    name: str
    kind: Literal["preset", "config", "directory"]
    path: Path
    config: dict[str, Any]

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the config that describes the language model (all of it, unless the model is multimodal)."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def positions(self) -> int | None:
        """How many positions the model was made for; None where its config names none."""
        for key in _POSITION_KEYS:
            value = self.text_config.get(key)
            if isinstance(value, int) and value > 0:
                return value
        return None

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary that the config names; of a preset it is a default that the tokenizer replaces."""
        value = self.text_config.get("vocab_size")
        return value if isinstance(value, int) else None


def preset_names() -> list[str]:
    """The names of the presets in the package, sorted."""
    return sorted(file.stem for file in PRESETS_DIR.glob("*.json"))


def load_config(model: str) -> ModelSource:
    """The source that `--model` names: first a preset, then a path.

    Raises:
        UserError: there is no such preset, file or directory; it is no transformers config; it has no weights.
    """
    if model in preset_names():
        path = PRESETS_DIR / f"{model}.json"
        return ModelSource(model, "preset", path, _read(path))
    path = Path(model).expanduser()
    if path.is_dir():
        config = _read(path / "config.json")
        if not any(path.glob("*.safetensors")):
            raise UserError(
                f"--model {model}: no *.safetensors in this directory to continue from; "
                f"name {path / 'config.json'} to start from new weights"
            )
        return ModelSource(path.resolve().name, "directory", path, config)
    if path.is_file():
        config = _read(path)
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
        return ModelSource(name, "config", path, config)
    names = preset_names()
    near = difflib.get_close_matches(model, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"--model {model}: neither a preset ({', '.join(names)}) nor a config.json nor a model directory{hint}"
    )


def check_seq_len(source: ModelSource, seq_len: int) -> None:
    """Refuse a sequence that is longer than the model's positions.

    Raises:
        UserError: it is longer; both numbers are named.
    """
    if seq_len < 2:
        raise UserError(f"--seq_len {seq_len}: a sample needs at least 2 positions")
    if source.positions is not None and seq_len > source.positions:
        raise UserError(
            f"--seq_len {seq_len}: longer than the {source.positions} positions of model {source.name}; "
            f"use at most {source.positions}"
        )


def resolve_vocab_size(source: ModelSource, tokenizer_size: int) -> int:
    """The rows of the embedding: a preset takes the tokenizer's size, a user's own config keeps the one it names.

    Raises:
        UserError: the tokenizer has tokens that the user's model has no row for.
    """
    if source.kind == "preset" or source.vocab_size is None:
        return tokenizer_size
    if tokenizer_size > source.vocab_size:
        raise UserError(
            f"--model {source.path}: vocab_size is {source.vocab_size}, but the tokenizer has {tokenizer_size} tokens; "
            "choose the model's own tokenizer with --tokenizer, or raise vocab_size in a config.json"
        )
    return source.vocab_size


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--model {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--model {path}: not a text file; name a transformers config.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"--model {path}: not a transformers config (no model_type); name a model's config.json")
    return config
