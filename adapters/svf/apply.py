"""The ways to apply z, one meaning: W' = U diag(z σ) Vᵀ. Shapes as in `basis`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .basis import Basis


def delta_weight(projection: Tensor, basis: Basis, z: Tensor) -> Tensor:
    """Return W' - W, float32 ``[m, n]``, for z ``[r]``; `projection` is `Basis.project(W)`."""
    if basis.left:
        return basis.vectors @ ((z - 1).unsqueeze(1) * projection)
    return (projection * (z - 1)) @ basis.vectors.T


def adapted_weight(weight: Tensor, basis: Basis, z: Tensor) -> Tensor:
    """Return W' in the dtype of `weight` ``[m, n]``, for z ``[r]``. z = 1 gives `weight` bit for bit.

    This one function serves *merged* (written into the layer) and *materialised* (in the forward pass) application, so both
    round alike; also under autocast, whose half precision would stay in a W' that is kept.
    """
    with torch.autocast(weight.device.type, enabled=False):
        return (weight.detach().float() + delta_weight(basis.project(weight), basis, z)).to(weight.dtype)


class MaterialisedLinear(torch.autograd.Function):
    """x W'ᵀ with the gradient of z taken from what the layer reads and writes, so that no gradient of the size of W' is formed.

    J's derivative in z_i is Σ_t (G Q)_i (W x)_i over the tokens t, in the basis: with G the gradient of the output y ``[t, m]`` and dx that
    of the input,

        left:   (Qᵀ G)_i (Qᵀ W x)_i = (Qᵀ G)_i (Qᵀ y)_i / z_i
        right:  (Qᵀ Wᵀ G)_i (Qᵀ x)_i = (Qᵀ dx)_i (Qᵀ x)_i / z_i

    Both are products with Q alone; over more tokens than Q has columns, the diagonal of Qᵀ (Σ_t y Gᵀ) Q is the same for less. z must be
    away from 0 (`LEAST_Z`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, adapted: Tensor, vectors: Tensor, left: bool) -> Tensor:
        """Return ``[..., m]`` for x ``[..., n]``; `adapted` is W' ``[m, n]`` of this z ``[r]`` in the dtype of x."""
        y = F.linear(x, adapted)
        ctx.save_for_backward(y if left else x, z, adapted, vectors)
        ctx.left = left
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and z."""
        kept, z, adapted, q = ctx.saved_tensors
        gradient = gradients[0].to(adapted.dtype)
        dx = gradient @ adapted if ctx.needs_input_grad[0] or not ctx.left else None
        dz = None
        if ctx.needs_input_grad[1]:
            other: Any = gradient if ctx.left else dx
            kept, other = kept.flatten(0, -2), other.flatten(0, -2)
            if len(kept) > len(q):
                wide = torch.float32 if kept.dtype is torch.float16 else kept.dtype  # the sums would leave float16's range
                products = ((kept.to(wide).T @ other.to(wide)).float() @ q) * q
            else:
                products = (kept.float() @ q) * (other.float() @ q)
            dz = products.sum(0) / z
        return dx, dz, None, None, None


LEAST_Z = 1e-3
"""Below this, `MaterialisedLinear` would divide rounding errors by z."""


def factored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, basis: Basis, z: Tensor) -> Tensor:
    """Apply W' to x without forming it: two extra products with Q.

    Args:
        x: ``[batch, seq, n]``, or ``[batch · seq, n]``, as some models hand it on.
        weight: W ``[m, n]``.
        bias: ``[m]`` or None.
        basis: of W.
        z: ``[r]`` for all, or ``[batch, 1, r]``: every sample its own expert.

    Returns:
        ``[batch, seq, m]``, or ``[batch · seq, m]``, in the dtype of x. The correction is computed in float32 (under autocast in
        its dtype), so z = 1 is exactly the base.
    """
    if z.dim() == 3 and x.dim() == 2:
        return factored_linear(x.unflatten(0, (len(z), -1)), weight, bias, basis, z).flatten(0, 1)
    q = basis.vectors
    if basis.left:
        y = F.linear(x, weight)
        correction = ((y.float() @ q) * (z - 1)) @ q.T
        y = (y.float() + correction).to(y.dtype)
    else:
        correction = ((x.float() @ q) * (z - 1)) @ q.T
        y = F.linear((x.float() + correction).to(x.dtype), weight)
    return y if bias is None else y + bias
