"""What `--model` takes, and what is said of what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_scale.arguments import UserError
from lm_scale.models.presets import check_seq_len, load_config, preset_names, resolve_vocab_size


def test_reading_a_config_needs_no_torch() -> None:
    code = (
        "import sys; from lm_scale.models.presets import load_config; load_config('mini');"
        "print([m for m in ('torch', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_presets_have_their_architecture() -> None:
    assert preset_names() == ["gpt2", "llama-7b", "mini", "qwen3-1b", "small", "tiny"]
    for name in preset_names():
        config = load_config(name).config
        assert config["architectures"][0].lower().startswith(config["model_type"])


def test_an_unknown_model_names_the_presets_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--model mimi: .*gpt2, llama-7b, mini.*did you mean mini\?"):
        load_config("mimi")


def test_a_config_file_is_named_after_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "ours" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 64}))
    source = load_config(str(path))
    assert (source.name, source.kind, source.vocab_size, source.positions) == ("ours", "config", 100, 64)


def test_a_broken_config_is_located(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "model_type": "llama",\n}')
    with pytest.raises(UserError, match=r"config\.json:3:1: not valid JSON"):
        load_config(str(path))
    path.write_text('{"hidden_size": 4}')
    with pytest.raises(UserError, match="not a transformers config"):
        load_config(str(path))


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"no \*\.safetensors .* name .*config\.json"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("model", ["gpt2", "tiny"])
def test_a_sequence_longer_than_the_positions_names_both(model: str) -> None:
    source = load_config(model)
    positions = {"gpt2": 1024, "tiny": 2048}[model]
    check_seq_len(source, positions)
    with pytest.raises(UserError, match=rf"--seq_len {positions + 1}: .* {positions} positions of model {model}"):
        check_seq_len(source, positions + 1)


def test_a_preset_takes_the_tokenizers_vocabulary_and_a_config_keeps_its_own(tmp_path: Path) -> None:
    assert resolve_vocab_size(load_config("mini"), 50_257) == 50_257
    path = tmp_path / "model.json"
    path.write_text('{"model_type": "llama", "vocab_size": 100}')
    source = load_config(str(path))
    assert resolve_vocab_size(source, 90) == 100
    with pytest.raises(UserError, match="vocab_size is 100, but the tokenizer has 101 tokens"):
        resolve_vocab_size(source, 101)
