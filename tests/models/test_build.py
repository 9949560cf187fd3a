"""From a source to a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm_scale.arguments import UserError
from lm_scale.models.build import build
from lm_scale.models.presets import load_config

VOCAB = 300


def write_config(folder: Path, **values: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


SMALL_LLAMA = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL_LLAMA |= {"model_type": "llama", "num_attention_heads": 4, "bos_token_id": None, "eos_token_id": None}


def test_a_preset_takes_the_tokenizers_vocabulary() -> None:
    model, notes = build(load_config("tiny"), 777, 64, None, seed=0)
    assert model.get_input_embeddings().weight.shape == (777, 64)
    assert model.config.vocab_size == 777
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert notes == []


def test_a_users_config_keeps_its_vocabulary(tmp_path: Path) -> None:
    source = load_config(write_config(tmp_path, **SMALL_LLAMA))
    model, _ = build(source, 200, 64, None, seed=0)
    assert model.get_input_embeddings().weight.shape == (VOCAB, 32)
    with pytest.raises(UserError, match="vocab_size is 300, but the tokenizer has 301"):
        build(source, 301, 64, None, seed=0)


def test_a_directory_gives_its_weights(tmp_path: Path) -> None:
    saved, _ = build(load_config(write_config(tmp_path, **SMALL_LLAMA)), VOCAB, 64, None, seed=5)
    saved.save_pretrained(tmp_path / "saved")
    model, _ = build(load_config(str(tmp_path / "saved")), VOCAB, 64, None, seed=6)
    assert all(torch.equal(one, two) for one, two in zip(saved.parameters(), model.parameters(), strict=True))
    assert model.training
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved, _ = build(load_config(write_config(tmp_path, **SMALL_LLAMA)), VOCAB, 64, None, seed=5)
    saved.save_pretrained(tmp_path / "saved")
    write_config(tmp_path / "saved", **{**SMALL_LLAMA, "num_hidden_layers": 3})
    with pytest.raises(UserError, match=r"9 missing keys in its weights \(model\.layers\.2\."):
        build(load_config(str(tmp_path / "saved")), VOCAB, 64, None, seed=5)
    write_config(tmp_path / "saved", **{**SMALL_LLAMA, "intermediate_size": 64})
    with pytest.raises(UserError, match="saved"):
        build(load_config(str(tmp_path / "saved")), VOCAB, 64, None, seed=5)


def test_a_damaged_file_of_weights_is_a_users_error(tmp_path: Path) -> None:
    write_config(tmp_path, **SMALL_LLAMA)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read"):
        build(load_config(str(tmp_path)), VOCAB, 64, None, seed=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen33"}, "model_type qwen33: "),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "x.y"}}, "has code of its own, which is not run"),
        ({"model_type": "vit"}, "no causal language model"),
        ({**SMALL_LLAMA, "hidden_size": 33}, "multiple of the number of attention"),
    ],
)
def test_what_transformers_cannot_build_is_a_users_error(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(load_config(write_config(tmp_path, **values)), VOCAB, 64, None, seed=0)
    assert "\n" not in str(caught.value)


def test_attention_that_is_not_there_is_refused_by_name_and_replaced_by_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--attn_implementation flash_attention_2: not for model tiny"):
        build(load_config("tiny"), VOCAB, 64, "flash_attention_2", seed=0)
    with pytest.raises(UserError, match="--attn_implementation sdqa"):
        build(load_config("tiny"), VOCAB, 64, "sdqa", seed=0)
    values = {**SMALL_LLAMA, "model_type": "granite_swa"}
    model, notes = build(load_config(write_config(tmp_path, **values)), VOCAB, 64, None, seed=0)
    assert model.config._attn_implementation == "eager"
    assert any(note.startswith("attention: eager, because") for note in notes)


def test_dropout_is_said(tmp_path: Path) -> None:
    values = {"model_type": "gpt2", "vocab_size": VOCAB, "n_embd": 16, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.1}
    _, notes = build(load_config(write_config(tmp_path, **values)), VOCAB, 64, None, seed=0)
    assert any("resid_pdrop 0.1" in note for note in notes)
    assert build(load_config("gpt2"), VOCAB, 64, None, seed=0)[1] == []
