"""The loss of a causal language model: summed over the tokens, in fp32, with or without ever holding all logits.

`chunked`  the head and the cross entropy, a chunk of tokens at a time; exact
`liger`    Liger's fused kernel, on a GPU; exact
`full`     the model's own logits, in fp32

The first two replace the model's own way from hidden states to logits, so they are taken only where a probe shows that
this way is the head alone (`obstacle`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lm_scale.arguments import UserError
from lm_scale.costs.head import chunk_rows

IGNORED = -100
"""The label of a position that carries none (padding)."""

Mode = Literal["chunked", "full", "liger"]


@dataclass(frozen=True)
class LossChoice:
    """How the loss is computed, and one line why."""

    mode: Mode
    reason: str


class CausalLMLoss(nn.Module):
    """A causal LM with its loss, as one module for an engine to train. The model's own state is under `model.`"""

    def __init__(self, model: PreTrainedModel, mode: Mode) -> None:
        super().__init__()
        self.model = model
        self.config = model.config  # DeepSpeed's tensor parallelism looks for it on the module that it is given
        self.mode = mode

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The sum of the token losses, a scalar in fp32; divide it by the labels of the global batch.

        Args:
            input_ids: token ids, (batch, sequence).
            labels: the token that follows each position, or `IGNORED`, (batch, sequence): shifted already.
        """
        if self.mode == "full":
            return self._full(input_ids, labels)
        # No mask: samples are full, or padded on the right, where a causal model's earlier positions cannot look.
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False)[0].flatten(0, 1)
        head = _head(self.model)
        return head_loss(self.mode, hidden, head.weight, head.bias, labels.flatten())

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the base model in place; the loss stays eager, its chunks are large products already."""
        self.model.base_model.compile(*args, **kwargs)

    def _full(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        outputs = self.model(input_ids=input_ids, use_cache=False)
        logits = outputs.logits.flatten(0, 1).float()
        loss = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        if self.model.training and _has_router_loss(self.model):
            # The model's own rule adds it to the mean of the token losses, so the sum takes it once a label.
            loss = loss + self.model.config.router_aux_loss_coef * outputs.aux_loss * (labels != IGNORED).sum()
        return loss


def head_loss(mode: Mode, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The summed loss, a scalar in fp32, under a head (vocabulary, width) of hidden states (tokens, width)."""
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else weight.dtype
    if mode == "full":
        logits = nn.functional.linear(hidden.to(dtype), weight.to(dtype), bias).float()
        return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    loss = _liger if mode == "liger" else chunked_cross_entropy
    return loss(hidden.to(dtype), weight.to(dtype), bias, labels)


def choose_loss(model: PreTrainedModel, asked: str, device_type: str) -> LossChoice:
    """The way to compute the loss of `model` for `--loss asked`. Reads no parameter, so they may be partitioned.

    Raises:
        UserError: `chunked` or `liger` was asked for by name and cannot give the model's own loss here.
    """
    if asked == "full":
        return LossChoice("full", "asked for")
    reason = obstacle(model)
    if asked in ("chunked", "liger") and reason:
        raise UserError(f"--loss {asked}: {reason}; use --loss full")
    installed = importlib.util.find_spec("liger_kernel") is not None
    if asked == "liger":
        if not installed:
            raise UserError("--loss liger: not installed; pip install liger-kernel, or use --loss chunked")
        if device_type == "cpu":
            raise UserError("--loss liger: its kernel needs a GPU; use --loss chunked")
        return LossChoice("liger", "asked for")
    if asked == "chunked":
        return LossChoice("chunked", "asked for")
    if reason:
        return LossChoice("full", reason)
    if installed and device_type != "cpu":
        return LossChoice("liger", "Liger's kernel is installed")
    return LossChoice("chunked", "the same loss as full without holding the logits")


def obstacle(model: PreTrainedModel) -> str | None:
    """Why the logits are not the head's product of the last hidden states, or None where they are.

    The model's own `forward` is run with base model and head replaced: the one returns known numbers, the other hands
    on what it is given. If they come through unchanged, nothing but the head stands between the two (no soft cap, no
    scale). No parameter is touched.
    """
    base, head = model.base_model, _head(model)
    if base is model or not isinstance(head, nn.Linear):
        return "the model has no base model with a linear head after it"
    if _has_router_loss(model):
        return "the model adds a loss of its router (output_router_logits)"
    hidden = (torch.arange(2 * head.in_features) % 128 + 1.0).reshape(1, 2, -1)  # exact in every precision
    given: list[Tensor] = []

    def record(states: Tensor) -> Tensor:
        given.append(states)
        return states

    try:
        with torch.no_grad(), _forward(base, lambda *_, **__: _LastHiddenState(hidden)), _forward(head, record):
            logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    except Exception as error:
        return f"the way from hidden states to logits could not be probed ({type(error).__name__})"
    if len(given) != 1 or not _same(given[0], hidden):
        return "the model changes its hidden states before the head"
    return None if _same(logits, hidden) else "the model changes its logits after the head (a soft cap or a scale)"


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The sum of the cross entropies of `hidden @ weight.T + bias` with `labels`, a scalar in fp32.

    Args:
        hidden: (tokens, features), in the precision of `weight`.
        weight: (vocabulary, features); `bias`: (vocabulary,) or None.
        labels: (tokens,), `IGNORED` where there is none.

    `torch.nn.functional.linear_cross_entropy` (torch 2.13) does the same and as fast in fp32, but returns its sum in
    the precision of `hidden`: measured with 2,048 tokens in bf16 it is 2e-3 off and scales all gradients by 1.003 (the
    incoming gradient is rounded too); in fp16 it is infinite from 65,504 on.
    """
    rows = chunk_rows(hidden.shape[0], hidden.device.type)
    arguments = (hidden, weight, bias, labels, rows, torch.is_grad_enabled())
    return cast(Tensor, _ChunkedCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients with the loss, while a chunk's logits are at hand; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: int, gradients: bool
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        products = torch.empty(rows, weight.shape[0], dtype=weight.dtype, device=hidden.device)
        logits = products if weight.dtype == torch.float32 else torch.empty_like(products, dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden) if gradients else None
        weight_gradient = torch.zeros_like(weight) if gradients else None
        bias_gradient = torch.zeros_like(bias) if gradients and bias is not None else None
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, min(start + rows, hidden.shape[0]))
            states, target = hidden[chunk], labels[chunk].clamp(min=0).unsqueeze(1)
            has_label = (labels[chunk] != IGNORED).unsqueeze(1)
            x, product = logits[: len(states)], products[: len(states)]
            torch.mm(states, weight.t(), out=product)
            x.copy_(product)
            if bias is not None:
                x += bias
            x -= x.amax(1, keepdim=True)
            label_logit = x.gather(1, target)
            total = x.exp_().sum(1, keepdim=True)
            loss += ((total.log() - label_logit) * has_label).sum()
            if hidden_gradient is None or weight_gradient is None:
                continue
            x *= has_label / total  # now softmax, and below softmax - one_hot: the gradient of the logits
            x.scatter_add_(1, target, -has_label.float())
            product.copy_(x)
            torch.mm(product, weight, out=hidden_gradient[chunk])
            weight_gradient.addmm_(product.t(), states)
            if bias_gradient is not None:
                bias_gradient += x.sum(0)
        ctx.gradients = (hidden_gradient, weight_gradient, bias_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        del ctx.gradients  # scaled in place, so there is no second backward pass
        scaled = [None if gradient is None else gradient.mul_(upstream) for gradient in gradients]
        return (*scaled, None, None, None)


def _liger(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    kernel = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32)
    loss: Tensor = kernel(weight, hidden, labels, bias)
    return loss.float()


def _head(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())  # type: ignore[no-untyped-call]


def _has_router_loss(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "output_router_logits", False))


class _LastHiddenState:
    """What a base model returns, with nothing in it but the last hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _forward(module: nn.Module, replacement: Any) -> Iterator[None]:
    """The module with another `forward` for as long as the context lasts."""
    before = module.__dict__.get("forward")
    module.forward = replacement
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())
