"""SVF's basis against `torch.linalg.svd`: seconds, bytes and exactness on the default model's matrices, the cache, and an expert's file.

    python -m pytest -m slow tests/benchmarks/test_svf_basis.py -s

The two are timed matrix by matrix in turn, so that what else the machine does falls on both.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from t2.adapters.experts import shipped
from t2.adapters.svf.basis import Basis, compute_basis
from t2.adapters.svf.cache import cached_basis
from t2.harness.fetch import default_model

from .conftest import Hold

SHIPPED = sorted(shipped().values())
MATRICES, TIME_LIMIT, WIDE_TIME_LIMIT, BYTES_LIMIT, ERROR_LIMIT, CACHE_SECONDS, CACHE_LIMIT, FILE_LIMIT = (
    210, 0.8, 0.4, 0.45, 1e-5, 2.0, 0.2, 1.1,
)  # fmt: skip


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


def measure(weights: list[torch.Tensor]) -> tuple[float, float, int, int, float]:
    """Seconds and bytes of ours and theirs, matrix by matrix in turn, and our worst relative error."""
    ours = theirs = worst = 0.0
    bytes_ours = bytes_theirs = 0
    for weight in weights:
        seconds, svd = timed(full_svd, weight)
        theirs += seconds
        seconds, basis = timed(compute_basis, weight)
        ours += seconds
        bytes_ours += size((basis.vectors, basis.sigma))
        bytes_theirs += size(svd)
        worst = max(worst, error(weight, basis))
    return ours, theirs, bytes_ours, bytes_theirs, worst


@pytest.mark.slow
def test_basis_of_the_default_model(weights: list[torch.Tensor], benchmark: BenchmarkFixture, hold: Hold) -> None:
    full_svd(weights[0]), compute_basis(weights[0])
    ours, theirs, bytes_ours, bytes_theirs, worst = benchmark.pedantic(measure, (weights,))
    print(
        f"\n{len(weights)} matrices: svd {theirs:.1f} s, {bytes_theirs / 1e6:.0f} MB; basis {ours:.1f} s, {bytes_ours / 1e6:.0f} MB; "
        f"ratios {ours / theirs:.2f}, {bytes_ours / bytes_theirs:.2f}; worst relative error {worst:.1e}"
    )
    assert worst <= ERROR_LIMIT
    hold(f"bytes of {MATRICES} bases / of their SVD", bytes_ours / bytes_theirs, BYTES_LIMIT, name="bytes")
    hold(f"seconds of {MATRICES} bases / of torch.linalg.svd", ours / theirs, TIME_LIMIT)


@pytest.mark.slow
def test_basis_of_a_wide_matrix(compare: Callable[..., None]) -> None:
    weight = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    assert error(weight, compute_basis(weight)) <= ERROR_LIMIT
    what = "basis of a 1024 x 4096 matrix / torch.linalg.svd"
    compare(what, lambda: compute_basis(weight), lambda: full_svd(weight), WIDE_TIME_LIMIT, rounds=3)


@pytest.mark.slow
def test_a_second_start_reads_the_cache(weights: list[torch.Tensor], tmp_path: Path, benchmark: BenchmarkFixture, hold: Hold) -> None:
    def start(ws: list[torch.Tensor]) -> list[Basis]:
        return [cached_basis(w, tmp_path) for w in ws]

    before, first = timed(start, weights)
    seconds, second = benchmark.pedantic(timed, (start, weights))
    print(f"\n{len(weights)} bases: first start {before:.1f} s, from the cache {seconds:.2f} s")
    assert all(torch.equal(a.vectors, b.vectors) and torch.equal(a.sigma, b.sigma) for a, b in zip(first, second, strict=True))
    assert seconds < CACHE_SECONDS
    hold(f"{MATRICES} bases from the cache / computed", seconds / before, CACHE_LIMIT)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_an_experts_file_holds_little_but_its_numbers(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    numbers = sum(t.numel() for t in load_file(file).values())
    print(f"\n{folder.name}: {numbers} numbers, {file.stat().st_size / (4 * numbers):.3f} times 4 bytes each")
    assert file.stat().st_size <= FILE_LIMIT * 4 * numbers
