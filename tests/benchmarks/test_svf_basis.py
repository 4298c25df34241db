"""SVF's basis against `torch.linalg.svd`: seconds, bytes and exactness on the default model's matrices, the cache, and an expert's file.

    python -m pytest -m slow tests/benchmarks/test_svf_basis.py -s

The two are timed matrix by matrix in turn, so that what else the machine does falls on both.
"""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import t2.adapters.experts
from t2.adapters.svf.basis import Basis, compute_basis
from t2.adapters.svf.cache import cached_basis
from t2.harness.fetch import default_model

SHIPPED = sorted(p.parent for p in Path(t2.adapters.experts.__file__).parent.glob("experts/*/card.json"))
MATRICES, TIME_LIMIT, WIDE_TIME_LIMIT, BYTES_LIMIT, ERROR_LIMIT, CACHE_SECONDS, FILE_LIMIT = 210, 0.8, 0.4, 0.45, 1e-5, 2.0, 1.1


@pytest.fixture(scope="module")
def weights() -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32)
    found = [m.weight.detach() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n]
    assert len(found) == MATRICES
    return found


def timed(function, weight):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    result = function(weight)
    return time.perf_counter() - start, result


def full_svd(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.linalg.svd(weight, full_matrices=False))


def size(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def error(weight: torch.Tensor, basis: Basis) -> float:
    """Relative error of U diag(σ) Vᵀ, whose other side is the projection over σ."""
    projection = basis.project(weight)
    q, sigma = basis.vectors, basis.sigma
    other = projection / (sigma.unsqueeze(1) if basis.left else sigma)
    rebuilt = (q * sigma) @ other if basis.left else (other * sigma) @ q.T
    return float((rebuilt - weight).norm() / weight.norm())


@pytest.mark.slow
def test_basis_of_the_default_model(weights: list[torch.Tensor]) -> None:
    full_svd(weights[0]), compute_basis(weights[0])
    ours = theirs = 0.0
    bytes_ours = bytes_theirs = 0
    worst = 0.0
    for weight in weights:
        seconds, svd = timed(full_svd, weight)
        theirs += seconds
        seconds, basis = timed(compute_basis, weight)
        ours += seconds
        bytes_ours += size((basis.vectors, basis.sigma))
        bytes_theirs += size(svd)
        worst = max(worst, error(weight, basis))
    print(
        f"\n{len(weights)} matrices: svd {theirs:.1f} s, {bytes_theirs / 1e6:.0f} MB; basis {ours:.1f} s, {bytes_ours / 1e6:.0f} MB; "
        f"ratios {ours / theirs:.2f}, {bytes_ours / bytes_theirs:.2f}; worst relative error {worst:.1e}"
    )
    assert worst <= ERROR_LIMIT
    assert bytes_ours <= BYTES_LIMIT * bytes_theirs
    assert ours <= TIME_LIMIT * theirs


@pytest.mark.slow
def test_basis_of_a_wide_matrix() -> None:
    weight = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    pairs = [(timed(compute_basis, weight)[0], timed(full_svd, weight)[0]) for _ in range(3)]
    ours, theirs = (min(pair[i] for pair in pairs) for i in (0, 1))
    print(f"\n1024 x 4096: svd {theirs:.2f} s, basis {ours:.2f} s, ratio {ours / theirs:.2f}")
    assert ours <= WIDE_TIME_LIMIT * theirs
    assert error(weight, compute_basis(weight)) <= ERROR_LIMIT


@pytest.mark.slow
def test_a_second_start_reads_the_cache(weights: list[torch.Tensor], tmp_path: Path) -> None:
    first = [cached_basis(weight, tmp_path) for weight in weights]
    seconds, second = timed(lambda ws: [cached_basis(w, tmp_path) for w in ws], weights)
    print(f"\n{len(weights)} bases from the cache: {seconds:.2f} s")
    assert all(torch.equal(a.vectors, b.vectors) and torch.equal(a.sigma, b.sigma) for a, b in zip(first, second, strict=True))
    assert seconds < CACHE_SECONDS


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_an_experts_file_holds_little_but_its_numbers(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    numbers = sum(t.numel() for t in load_file(file).values())
    print(f"\n{folder.name}: {numbers} numbers, {file.stat().st_size / (4 * numbers):.3f} times 4 bytes each")
    assert file.stat().st_size <= FILE_LIMIT * 4 * numbers
