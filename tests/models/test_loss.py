"""The loss without the logits is the loss with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lm_scale.arguments import UserError
from lm_scale.costs import head
from lm_scale.models.loss import IGNORED, CausalLMLoss, choose_loss, chunked_cross_entropy

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
SIZES |= {"pad_token_id": None}


def make(model_type: str, **values: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **values})).train()


def batch(vocab: int = 300) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, vocab, (3, 41), generator=torch.Generator().manual_seed(1))
    labels = ids[:, 1:].clone()
    labels[0, 25:] = IGNORED
    return ids[:, :-1], labels


def losses(model: PreTrainedModel, mode: Any, scale: float = 1.0) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = CausalLMLoss(model, mode)(*batch())
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    (loss * scale).backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def check_equal(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    for name in one:
        assert (one[name] - other[name]).norm() <= tolerance * other[name].norm() + 1e-12, name


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.CHUNK_ROWS, "cpu", 32)  # 120 tokens: three chunks and a part of one


MODELS = {
    "qwen3": ("qwen3", {"head_dim": 8}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": (
        "gpt2",
        {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0}
        | {"embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "phi, a head with a bias": ("phi", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
}


@pytest.mark.parametrize(("model_type", "values"), MODELS.values(), ids=MODELS.keys())
def test_chunked_is_full(model_type: str, values: dict[str, Any]) -> None:
    model = make(model_type, **values)
    assert choose_loss(model, "auto", "cpu").mode == "chunked"
    full, full_gradients = losses(model, "full", 1 / 104)
    chunked, chunked_gradients = losses(model, "chunked", 1 / 104)
    assert chunked == pytest.approx(full, rel=1e-6)
    check_equal(chunked_gradients, full_gradients, 2e-6)


def test_full_is_transformers_own_loss() -> None:
    """Its mean over the labels, with labels that transformers shifts itself."""
    model = make("llama")
    ids = torch.randint(0, 300, (2, 30))
    theirs = model(input_ids=ids, labels=ids).loss
    ours = CausalLMLoss(model, "full")(ids[:, :-1], ids[:, 1:])
    assert ours.item() / (2 * 29) == pytest.approx(theirs.item(), rel=1e-6)


def test_padding_on_the_right_changes_no_loss() -> None:
    model = make("llama")
    inputs, labels = batch()
    alone = CausalLMLoss(model, "chunked")(inputs[:1, :25], labels[:1, :25])
    padded = CausalLMLoss(model, "chunked")(inputs[:1], labels[:1])
    assert padded.item() == pytest.approx(alone.item(), rel=1e-6)


def test_a_batch_without_labels_has_neither_loss_nor_gradient() -> None:
    model = make("llama")
    inputs, labels = batch()
    loss = CausalLMLoss(model, "chunked")(inputs, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_chunks_agree_with_torchs_own_function_in_fp64(bias: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(100, 16, generator=generator)
    weight = torch.randn(50, 16, generator=generator)
    bias_values = torch.randn(50, generator=generator) if bias else None
    labels = torch.randint(0, 50, (100,), generator=generator)
    labels[10:20] = IGNORED

    leaves = [None if t is None else t.clone().requires_grad_() for t in (hidden, weight, bias_values)]
    ours = chunked_cross_entropy(*leaves, labels)  # type: ignore[arg-type]
    (ours / 7).backward()
    exact = [None if t is None else t.double().requires_grad_() for t in (hidden, weight, bias_values)]
    logits = functional.linear(exact[0], exact[1], exact[2])  # type: ignore[arg-type]
    theirs = functional.cross_entropy(logits, labels, reduction="sum")
    (theirs / 7).backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for one, other in zip(leaves, exact, strict=True):
        if one is not None and other is not None:
            assert torch.allclose(one.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
def test_lower_precision_sums_in_fp32(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """8,192 tokens: their summed loss, 68,000, does not fit fp16, and in bf16 would be rounded by up to 128."""
    monkeypatch.setitem(head.CHUNK_ROWS, "cpu", head.DEFAULT_CHUNK_ROWS)  # low precision is for GPUs
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(8192, 16, generator=generator).to(dtype)
    weight = (0.02 * torch.randn(4096, 16, generator=generator)).to(dtype)
    labels = torch.randint(0, 4096, (8192,), generator=generator)
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    ours = chunked_cross_entropy(leaves[0], leaves[1], None, labels)
    (ours / 1000).backward()
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    theirs = functional.cross_entropy(functional.linear(*exact), labels, reduction="sum")
    (theirs / 1000).backward()
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for one, other in zip(leaves, exact, strict=True):
        assert one.grad.dtype == dtype
        assert (one.grad.double() - other.grad).norm() < tolerance * other.grad.norm()
        scale = (one.grad.double() * other.grad).sum() / other.grad.square().sum()
        assert scale.item() == pytest.approx(1, abs=1e-3)


def test_an_evaluation_computes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    products: list[str] = []
    matrix_product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: (products.append("mm"), matrix_product(*a, **k))[1])
    with torch.no_grad():
        loss = CausalLMLoss(model, "chunked")(*batch())
    assert not loss.requires_grad
    assert len(products) == 4  # the logits of four chunks, and no product with their gradient
    assert loss.item() == pytest.approx(losses(model, "chunked")[0], rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointed_blocks_give_the_same_gradients() -> None:
    model = make("qwen3", head_dim=8)
    plain = losses(model, "chunked")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = losses(model, "chunked")
    assert checkpointed[0] == pytest.approx(plain[0], rel=1e-6)
    check_equal(checkpointed[1], plain[1], 1e-6)


def test_compiling_leaves_names_and_numbers_as_they_are() -> None:
    model = make("llama")
    plain = losses(model, "chunked")
    names = list(model.state_dict())
    module = CausalLMLoss(model, "chunked")
    module.compile(backend="aot_eager")
    compiled = losses(model, "chunked")
    assert list(model.state_dict()) == names
    assert compiled[0] == pytest.approx(plain[0], rel=1e-6)
    check_equal(compiled[1], plain[1], 1e-5)


TRANSFORMED = {
    "gemma2 caps": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0}, "logits after the head"),
    "cohere scales": ("cohere", {"logit_scale": 0.25}, "logits after the head"),
    "granite divides": ("granite", {"logits_scaling": 8.0}, "logits after the head"),
    "router": ("mixtral", {"num_local_experts": 4, "output_router_logits": True}, "router"),
}


@pytest.mark.parametrize(("model_type", "values", "why"), TRANSFORMED.values(), ids=TRANSFORMED.keys())
def test_a_model_that_changes_its_logits_takes_the_full_path(model_type: str, values: dict[str, Any], why: str) -> None:
    model = make(model_type, **values)
    choice = choose_loss(model, "auto", "cpu")
    assert choice.mode == "full"
    assert why in choice.reason
    with pytest.raises(UserError, match=r"--loss chunked: .*; use --loss full"):
        choose_loss(model, "chunked", "cpu")
    inputs, labels = batch()
    theirs = model(input_ids=inputs).logits.flatten(0, 1)
    expected = functional.cross_entropy(theirs, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    with torch.no_grad():
        assert CausalLMLoss(model.eval(), "full")(inputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_scale_of_one_is_no_change() -> None:
    assert choose_loss(make("granite", logits_scaling=1.0), "auto", "cpu").mode == "chunked"


def test_hidden_states_changed_before_the_head_are_noticed() -> None:
    model = make("llama")
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        inner = model.lm_head.forward
        model.lm_head.forward = lambda states: inner(states * 2)
        try:
            return forward(*args, **kwargs)
        finally:
            model.lm_head.forward = inner

    model.forward = scaled  # type: ignore[method-assign]
    assert "before the head" in choose_loss(model, "auto", "cpu").reason


def test_probing_leaves_the_model_as_it_was() -> None:
    model = make("llama")
    before = copy.deepcopy(model.state_dict())
    choose_loss(model, "auto", "cpu")
    assert "forward" not in model.model.__dict__
    assert "forward" not in model.lm_head.__dict__
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_routers_loss_is_added_once_a_label_in_training() -> None:
    model = make("mixtral", num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5)
    ids = torch.randint(0, 300, (2, 30))
    outputs = model(input_ids=ids[:, :-1])
    labels = ids[:, 1:]
    tokens = functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    expected = tokens + 0.5 * outputs.aux_loss * labels.numel()
    assert CausalLMLoss(model, "full")(ids[:, :-1], labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert CausalLMLoss(model.eval(), "full")(ids[:, :-1], labels).item() == pytest.approx(tokens.item(), rel=1e-6)


def test_liger_needs_its_package_and_a_gpu() -> None:
    with pytest.raises(UserError, match="--loss liger: "):
        choose_loss(make("llama"), "liger", "cpu")


def test_full_is_taken_when_asked_for() -> None:
    assert choose_loss(make("llama"), "full", "cpu").mode == "full"


def test_a_frozen_head_still_lets_the_rest_learn() -> None:
    model = make("llama")
    model.lm_head.weight.requires_grad_(False)
    CausalLMLoss(model, "chunked")(*batch()).backward()
    assert model.lm_head.weight.grad is None
    assert isinstance(model.model, nn.Module)
    assert model.model.embed_tokens.weight.grad.any()


def test_autocast_multiplies_in_its_precision_and_sums_in_fp32() -> None:
    model = make("llama")
    full = losses(model, "full")[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked, gradients = losses(model, "chunked")
    assert chunked == pytest.approx(full, rel=1e-3)
    assert gradients["lm_head.weight"].dtype == torch.float32
