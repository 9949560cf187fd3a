"""ZeRO-3 with the optimizer on NVMe trains what ZeRO-3 trains, at a shape that DeepSpeed alone gets wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launches import CONFIGS, Launch, has_libaio

from lm_scale.records import read

# Two ranks, head_dim 16: the head's gradient is 1 MiB a rank and lies at a multiple of 128 bytes, not of 512.
CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


@pytest.mark.skipif(not has_libaio(), reason="NVMe offload needs libaio-dev")
def test_losses_and_norms_are_those_of_zero3_in_memory(pretrain: Launch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    text = "\n\n".join(f"{n} squared is {n * n}, and cubed it is {n**3}." for n in range(20000))
    (tmp_path / "text.txt").write_text(text)
    words = ["--model", str(tmp_path / "config.json"), "--dataset", str(tmp_path / "text.txt"), "--no_save"]
    tokenizer = train_tokenizer(tmp_path)
    words += ["--tokenizer", str(tokenizer), "--seq_len", "64", "--per_device_train_batch_size", "2", "--bf16", "false"]
    words += ["--max_steps", "6", "--learning_rate", "1e-2", "--sample_tokens", "0", "--output_dir", str(tmp_path)]
    runs = {}
    for name in ("zero3_offload", "zero3_nvme"):
        given = ["--ds_config", str(CONFIGS / f"{name}.json"), "--run_name", name]
        if name == "zero3_nvme":
            given += ["--override", f"zero_optimization.offload_optimizer.nvme_path={tmp_path / 'nvme'}"]
        done = pretrain(*given, *words, ranks=2, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        runs[name] = read(tmp_path / name).of("step")
    for key in ("loss", "grad_norm"):
        nvme, memory = ([step[key] for step in runs[name]] for name in ("zero3_nvme", "zero3_offload"))
        assert nvme == pytest.approx(memory, rel=1e-6), key


def test_fast_init_is_refused_by_name(pretrain: Launch, tmp_path: Path) -> None:
    words = ("--override", "zero_optimization.offload_optimizer.fast_init=true", "--output_dir", str(tmp_path))
    done = pretrain("--ds_config", str(CONFIGS / "zero3_nvme.json"), *words)
    assert done.returncode == 2
    assert "offload_optimizer.fast_init" in done.stderr


def train_tokenizer(folder: Path) -> Path:
    """A tokenizer of at most 4,096 tokens, as transformers loads it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(folder / "text.txt")], vocab_size=4096, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def test_a_swap_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    from lm_scale.arguments import PretrainArguments, UserError
    from lm_scale.engines.nvme import claim_swap_folders
    from lm_scale.strategy.machine import Machine
    from lm_scale.strategy.resolve import resolve

    path = f"zero_optimization.offload_optimizer.nvme_path={tmp_path}"
    arguments = PretrainArguments(ds_config=str(CONFIGS / "zero3_nvme.json"), override=[path])
    strategy = resolve(arguments, arguments, 64, 2, Machine("cpu", 2, False, ""))
    (first,) = claim_swap_folders(strategy)
    with pytest.raises(UserError, match="another run uses it"):
        claim_swap_folders(strategy)
    first.close()
    assert len(claim_swap_folders(strategy)) == 1
