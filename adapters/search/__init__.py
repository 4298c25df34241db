"""Few-shot adaptation (the paper's strategy C): search for the α of z' = Σ α_k z_k by what a mixture scores on a few documents."""

from .optimisers import CEM, make_optimiser
from .run import Outcome, Search, SearchResult
from .space import AlphaSpace

__all__ = [
    "CEM",
    "AlphaSpace",
    "Outcome",
    "Search",
    "SearchResult",
    "make_optimiser",
]
