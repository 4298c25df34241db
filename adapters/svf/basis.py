"""The one-sided basis of a weight matrix, exact and half the work of a full SVD.

Letters: m = out features, n = in features, r = min(m, n). W = U diag(σ) Vᵀ has shape [m, n].
With Q the singular vectors of the smaller side, W' = U diag(z σ) Vᵀ (section 3.1 of the paper) equals

    Q diag(z) Qᵀ W   if m ≤ n   (Q = U, "left")
    W Q diag(z) Qᵀ   if m > n   (Q = V, "right")

so Q [r, r] and σ [r] are all that is needed, and z = 1 gives W' - W = 0 exactly in any dtype.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AdapterError


@dataclass(frozen=True)
class Basis:
    """Singular vectors of the smaller side of one weight matrix.

    Attributes:
        vectors: Q, float32 ``[r, r]``, columns in order of descending singular value.
        sigma: σ, float32 ``[r]``, descending.
        left: True if Q acts on the output side (m ≤ n).
    """

    vectors: Tensor
    sigma: Tensor
    left: bool

    def to(self, device: torch.device) -> "Basis":
        """Return this basis on `device` (itself if it is there already)."""
        if self.vectors.device == device:
            return self
        return Basis(self.vectors.to(device), self.sigma.to(device), self.left)

    def project(self, weight: Tensor) -> Tensor:
        """Return the matrix in the basis, float32: Qᵀ W ``[r, n]`` (left) or W Q ``[m, r]`` (right)."""
        w = weight.detach().float()
        return self.vectors.T @ w if self.left else w @ self.vectors


def compute_basis(weight: Tensor) -> Basis:
    """Compute the basis of `weight` ``[m, n]`` by one symmetric eigenproblem in float64 on its device (Apple's has none: on the CPU).

    Raises:
        AdapterError: if `weight` is not a matrix or has NaN or infinite entries.
    """
    if weight.dim() != 2:
        raise AdapterError(f"SVF adapts matrices; got a weight of shape {tuple(weight.shape)}.")
    w = weight.detach()
    w = (w.cpu() if w.device.type == "mps" else w).double()
    if not torch.isfinite(w).all():
        raise AdapterError("The weight has NaN or infinite entries, so it has no singular values: the checkpoint is damaged.")
    left = w.shape[0] <= w.shape[1]
    gram = w @ w.T if left else w.T @ w
    eigenvalues, vectors = torch.linalg.eigh(gram)
    sigma = eigenvalues.clamp_min(0).sqrt().flip(0)
    return Basis(vectors.flip(1).float().contiguous(), sigma.float().contiguous(), left).to(weight.device)


def renormalised_scale(p: Tensor, sigma: Tensor) -> Tensor:
    """The z that the paper's reference code applies for its raw parameter p.

    z = sigmoid(p) · Σσ / Σ(σ · sigmoid(p)), shape ``[r]``: the sum of singular values is kept.
    """
    m = torch.sigmoid(p)
    return m * (sigma.sum() / (sigma * m).sum().clamp_min(torch.finfo(sigma.dtype).tiny))  # Σσ is 0 for a matrix of zeros
