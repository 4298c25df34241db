"""Three ways to apply z, one meaning: W' = U diag(z σ) Vᵀ. Shapes as in `basis`."""

import torch.nn.functional as F
from torch import Tensor

from .basis import Basis


def delta_weight(projection: Tensor, basis: Basis, z: Tensor) -> Tensor:
    """Return W' - W, float32 ``[m, n]``, differentiable in z ``[r]``; `projection` is `Basis.project(W)`."""
    if basis.left:
        return basis.vectors @ ((z - 1).unsqueeze(1) * projection)
    return (projection * (z - 1)) @ basis.vectors.T


def adapted_weight(weight: Tensor, basis: Basis, z: Tensor, projection: Tensor | None = None) -> Tensor:
    """Return W' in the dtype of `weight` ``[m, n]``; differentiable in z ``[r]``. z = 1 gives `weight` bit for bit.

    This one function serves *merged* (written into the layer) and *materialised* (in the forward pass) application, so both
    round alike.
    """
    projection = basis.project(weight) if projection is None else projection
    return (weight.detach().float() + delta_weight(projection, basis, z)).to(weight.dtype)


def factored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, basis: Basis, z: Tensor) -> Tensor:
    """Apply W' to x without forming it: two extra products with Q.

    Args:
        x: ``[batch, seq, n]``.
        weight: W ``[m, n]``.
        bias: ``[m]`` or None.
        basis: of W.
        z: ``[r]`` for all, or ``[batch, 1, r]``: every sample its own expert.

    Returns:
        ``[batch, seq, m]`` in the dtype of x. The correction is computed in float32, so z = 1 is exactly the base.
    """
    q = basis.vectors
    if basis.left:
        y = F.linear(x, weight)
        correction = ((y.float() @ q) * (z - 1)) @ q.T
        y = (y.float() + correction).to(y.dtype)
    else:
        correction = ((x.float() @ q) * (z - 1)) @ q.T
        y = F.linear((x.float() + correction).to(x.dtype), weight)
    return y if bias is None else y + bias
