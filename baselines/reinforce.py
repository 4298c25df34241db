"""REINFORCE with KL, equation 1 of the paper:

    J(z) = E[ log π_W'(ŷ | x) · r(ŷ, y) ] - λ · KL(π_W' ‖ π_W)      (maximised)

Letters: B replies in the batch, b in one pass, T reply tokens, H width of the head's input, V vocabulary.
"""  # noqa: D415

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer

from .memory import return_free_pages
from .rollout import Rollouts


@dataclass(frozen=True)
class StepStats:
    """What one gradient computation saw, means over the batch.

    Attributes:
        loss: -J.
        kl: of a reply, in the form asked for, summed over its tokens, in nats.
        logprob: log π_W'(ŷ | x) of a reply, in nats.
    """

    loss: float
    kl: float
    logprob: float


def advantages(rewards: Tensor, baseline: str, samples_per_prompt: int = 1) -> Tensor:
    """Return the advantage of each reply.

    Args:
        rewards: ``[B]``; the samples of one prompt stand side by side.
        baseline: ``none``: the rewards themselves (the paper); ``batch``: minus the batch's mean; ``leave_one_out``: minus the mean of the
            same prompt's other samples (RLOO, Ahmadian et al. 2024).
        samples_per_prompt: k > 1 for ``leave_one_out``.
    """
    if baseline == "batch":
        rewards = rewards - rewards[0]  # so that equal rewards give 0 and no rounding error
        return rewards - rewards.mean()
    if baseline == "leave_one_out":
        groups = rewards.view(-1, samples_per_prompt)
        groups = groups - groups[:, :1]
        others = (groups.sum(1, keepdim=True) - groups) / (samples_per_prompt - 1)
        return (groups - others).flatten()
    return rewards


def plain_head(model: Any, rollouts: Rollouts) -> nn.Module | None:
    """Return the output head if it is frozen and its output is the logits; None where the model scales or caps them after it."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module) or any(p.requires_grad for p in head.parameters()):
        return None
    made: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, __, output: made.append(output.clone()))
    try:
        with torch.no_grad():
            logits = model(input_ids=rollouts.ids[:, -rollouts.reply_length - 1, None], use_cache=False).logits  # no padding: all 0
    finally:
        hook.remove()
    return head if len(made) == 1 and bool(logits.any()) and torch.equal(made[0].float(), logits.float()) else None


def reply_states(model: nn.Module, head: nn.Module, rollouts: Rollouts) -> Tensor:
    """Return what `head` makes the logits of `reply_logits` from, ``[b, T, H]``."""
    seen: list[Tensor] = []

    def first(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        return (arguments[0][:, :1].detach(), *arguments[1:])

    hook = head.register_forward_pre_hook(first)
    try:
        reply_logits(model, rollouts)
    finally:
        hook.remove()
    return _of_replies(seen[0], rollouts)


def _of_replies(rows: Tensor, rollouts: Rollouts) -> Tensor:
    """Return what belongs to the replies of whole rows ``[b, P + T, …]``, which a model gives that knows no `logits_to_keep`."""
    length = rollouts.reply_length
    return rows if rows.shape[1] == length else rows[:, -length - 1 : -1]


def reply_logits(model: nn.Module, rollouts: Rollouts) -> Tensor:
    """Return the logits that predict each reply token, ``[b, T, V]``, in the model's dtype."""
    positions = (rollouts.mask.cumsum(1) - 1).clamp_min(0)
    width = rollouts.ids.shape[1]
    output = model(
        input_ids=rollouts.ids,
        attention_mask=rollouts.mask,
        position_ids=positions,
        # indices, not a count: the last token's own logits are not wanted, and a slice of the logits would be copied on the way back
        logits_to_keep=torch.arange(width - rollouts.reply_length - 1, width - 1, device=rollouts.ids.device),
        use_cache=False,
    )
    return _of_replies(output.logits, rollouts)


def _terms(  # noqa: D417 - the last three are those of `loss_gradient`
    logits: Tensor, reference: Tensor | None, ids: Tensor, weight: Tensor, kl_coef: float, temperature: float, kl_form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of λ KL - weight · log π(token) with respect to n tokens' logits, float32 ``[n, V]``, log π and KL, each ``[n]``.

    In closed form and in place, for memory's sake: with p = π and q the reference's distribution, ∂ log π(a) / ∂ logits = 1_a - p,
    ∂ KL(p ‖ q) = p ((log p - log q) - KL), ∂ KL(q ‖ p) = p - q, and ∂ k3 = (1 - q_a / p_a) (1_a - p), all over the temperature.

    Args:
        logits: ``[n, V]``, overwritten where they are float32.
        reference: likewise; None without KL.
        ids: ``[n]``.
        weight: ``[n]``.
    """
    token = ids.unsqueeze(1)
    logp = _log_softmax(logits, temperature)
    chosen, kl = logp.gather(1, token), torch.zeros_like(weight).unsqueeze(1)
    weight = weight.unsqueeze(1)
    if reference is None:
        gradient = logp.exp_().mul_(weight)
    else:
        ref = _log_softmax(reference, temperature)
        p = logp.exp()
        if kl_form == "k3":  # http://joschu.net/blog/kl-approx.html
            ratio = ref.gather(1, token) - chosen
            kl = ratio.exp() - ratio - 1
            weight = weight + kl_coef * (ratio.exp() - 1)
            gradient = p.mul_(weight)
        elif kl_form == "base_policy":
            q = ref.exp()
            kl = torch.linalg.vecdot(q, ref.sub_(logp)).unsqueeze(1)
            gradient = p.mul_(weight + kl_coef).sub_(q, alpha=kl_coef)
        else:
            difference = logp.sub_(ref)
            kl = torch.linalg.vecdot(p, difference).unsqueeze(1)
            gradient = difference.sub_(kl).mul_(kl_coef).add_(weight).mul_(p)
    gradient.scatter_add_(1, token, -weight)
    return gradient.div_(temperature), chosen.squeeze(1), kl.squeeze(1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return the logarithm of softmax(logits / temperature), in the place of `logits` where they are float32."""
    scaled = logits.float().div_(temperature)
    return scaled.sub_(scaled.logsumexp(-1, keepdim=True))


def loss_gradient(
    states: Tensor,
    reference: Tensor | None,
    rollouts: Rollouts,
    advantage: Tensor,
    kl_coef: float,
    temperature: float,
    kl_form: str = "policy_base",
    head: nn.Module | None = None,
    chunk: int = 2**22,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of Σ (-advantage · log π + λ KL) over the reply tokens with respect to `states`, and both terms.

    Works through `chunk` logits at a time (one token at least), so that of the float32 ``[tokens, V]`` tensors that a softmax and its
    gradient need, three at most, and with a head of the logits too, only 16 MiB each exist at once (a head's weight is read anew for each
    chunk: smaller ones are slower). Where there is a reference the gradient takes its place in memory.

    Args:
        states: ``[b, T, H]``; without a head the logits themselves, ``[b, T, V]``.
        reference: like `states`, overwritten; None without KL.
        rollouts: the b replies.
        advantage: ``[b]``.
        kl_coef: λ.
        temperature: divides the logits.
        kl_form: as `TrainConfig.kl_form`.
        head: makes logits of states, for policy and reference alike.
        chunk: logits at a time.

    Returns:
        the gradient, like `states`, and log π and KL of every reply token, float32 ``[b, T]``, 0 on padding.
    """
    head = head or nn.Identity()
    gradient = torch.zeros_like(states, memory_format=torch.contiguous_format) if reference is None else reference.contiguous()
    keep = rollouts.reply_mask.flatten()
    ids = rollouts.ids[:, -rollouts.reply_length :].flatten()
    weight = advantage.to(keep).repeat_interleave(rollouts.reply_length)
    logp, kl = torch.zeros_like(keep), torch.zeros_like(keep)
    rows, out = states.detach().flatten(0, 1), gradient.flatten(0, 1)
    with torch.no_grad():
        tokens = max(1, chunk // head(rows[:1]).shape[-1])
    for part in keep.nonzero().squeeze(1).split(tokens):
        x = rows[part].requires_grad_()
        with torch.enable_grad():
            logits = head(x)
        with torch.no_grad():
            ref = None if reference is None else head(out[part])
            found, logp[part], kl[part] = _terms(logits.detach(), ref, ids[part], weight[part], kl_coef, temperature, kl_form)
        out[part] = torch.autograd.grad(logits, x, found.to(logits.dtype))[0]
    out[keep == 0] = 0
    return gradient, logp.view_as(rollouts.reply_mask), kl.view_as(rollouts.reply_mask)


def passes(prompts: Tensor, replies: Tensor, tokens_per_pass: int) -> Iterator[Tensor]:
    """Yield indices ``[b]`` of rows, sorted by length, whose padded size stays within the token budget (one row at least).

    Args:
        prompts: ``[B]``, tokens of each that are padded on the left.
        replies: ``[B]``, tokens after them, padded on the right.
        tokens_per_pass: the budget.
    """
    group: list[int] = []
    for i in torch.argsort(prompts + replies, descending=True).tolist():
        widened = [*group, i]
        width = int(prompts[widened].max() + replies[widened].max())
        if group and len(widened) * width > tokens_per_pass:
            yield torch.tensor(group)
            widened = [i]
        group = widened
    if group:
        yield torch.tensor(group)


@contextmanager
def recomputed_layers(model: nn.Module, on: bool) -> Iterator[None]:
    """Let transformers' layers recompute their activations in the backward pass; dropout stays off.

    `model` has its `gradient_checkpointing_enable` done. Layers recompute in training mode only, which their children are not put into; the
    rates of dropout that some layers (OPT's, BioGPT's, XGLM's) have as numbers are 0 meanwhile.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if on else []
    rates = [(layer, name, rate) for layer in layers for name, rate in vars(layer).items() if "dropout" in name and isinstance(rate, float)]
    for layer in layers:
        layer.training = True
    for layer, name, _ in rates:
        setattr(layer, name, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        for layer, name, rate in rates:
            setattr(layer, name, rate)


def accumulate_gradient(
    model: nn.Module,
    reference: Callable[[], AbstractContextManager[object]],
    rollouts: Rollouts,
    advantage: Tensor,
    kl_coef: float,
    temperature: float,
    tokens_per_pass: int,
    kl_form: str = "policy_base",
    total: int | None = None,
) -> StepStats:
    """Add the gradient of -J to the trainable parameters.

    Args:
        model: the policy π_W'.
        reference: context in which `model` is π_W (PEFT's `disable_adapter`).
        rollouts: B replies sampled from `model`.
        advantage: ``[B]``.
        kl_coef: λ.
        temperature: at which the replies were sampled; π is the distribution at that temperature.
        tokens_per_pass: size of one forward-backward pass in tokens.
        kl_form: as `TrainConfig.kl_form`.
        total: replies of the whole batch, where `rollouts` is one process's share of it.
    """
    total = len(advantage) if total is None else total
    loss_sum = kl_sum = logp_sum = 0.0
    head = plain_head(model, rollouts)
    forward = reply_logits if head is None else functools.partial(reply_states, head=head)
    replies = rollouts.reply_mask.sum(1).long()
    for index in passes(rollouts.mask.sum(1) - replies, replies, tokens_per_pass):
        part = rollouts.rows(index)
        ref = None
        if kl_coef > 0:
            with torch.no_grad(), reference():
                ref = forward(model, rollouts=part)
        states = forward(model, rollouts=part)
        gradient, logp, kl = loss_gradient(states, ref, part, advantage[index] / total, kl_coef / total, temperature, kl_form, head)
        states.backward(gradient)
        del ref, states, gradient  # the next pass makes as much again
        return_free_pages()
        logp_sum += float(logp.sum()) / total
        kl_sum += float(kl.sum()) / total
        loss_sum += float(kl_coef * kl.sum() - (advantage[index].to(logp) * logp.sum(1)).sum()) / total
    return StepStats(loss_sum, kl_sum, logp_sum)
