"""Training a probe (`t2 probe`): hidden states of early layers, logistic regression, the earliest layer that is as good as the best."""

import hashlib
import json
import platform
import random
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..adapters.dispatch_probe import Reader
from ..adapters.dispatch_prompt import OTHERS
from ..adapters.early_exit import decoder_layers, mean_states
from ..adapters.probe import Probe, check_folder, layers_fingerprint, save_probe
from ..harness.errors import T2Error
from .probe_prompts import FORMS, labelled_prompts

PER_CATEGORY = 480
"""Prompts of each category: half to train on, half to choose the layer by."""
AS_GOOD = 0.005
"""The earliest layer is taken whose validation accuracy is at most this below the best layer's."""
PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""C of scikit-learn's LogisticRegression: the best by validation loss is taken."""


class _Fit(NamedTuple):
    accuracy: float
    loss: float
    weight: np.ndarray
    bias: np.ndarray


def train_probe(model_name: str | None, output: Path, extra: Mapping[str, Path], seed: int = 0) -> dict[str, Any]:
    """Train a probe for a model and write it to `output`; return its card.

    Args:
        model_name: Hugging Face name or folder; None: the default model.
        output: folder to write.
        extra: category → file with its prompts, one a line, for experts that t2 has no data for.
        seed: of the prompts and of their split.

    Raises:
        T2Error: data or model cannot be had, or too few prompts.
        AdapterError: `output` holds an expert, or cannot be written to.
    """
    started = time.monotonic()
    prompts = [*labelled_prompts(PER_CATEGORY, seed), *_from_files(extra)]
    check_folder(output)
    model, tokenizer, base = _load(model_name)
    reader = Reader(tokenizer)
    # the first tenth of the layers: what comes later costs more than a probe may
    layers = list(range(1, max(2, len(decoder_layers(model)) // 10) + 1))
    states = _states(model, [reader.tokens(text) for _, text, _ in prompts], layers)
    names = [*FORMS, *extra]
    labels = np.array([names.index(category) for category, _, _ in prompts])
    validation = _validation([place for *_, place in prompts], seed)
    fits = [_best_fit(states[:, i], labels, validation) for i in range(len(layers))]
    n = int(validation.sum())
    best = max(fit.accuracy for fit in fits)
    chosen = next(i for i, fit in enumerate(fits) if fit.accuracy >= best - AS_GOOD)
    layer, fit = layers[chosen], fits[chosen]
    weight, bias = torch.from_numpy(fit.weight).float(), torch.from_numpy(fit.bias).float()
    probe = Probe(tuple(names), layer, weight, bias, layers_fingerprint(model, layer))
    card = {
        "description": "Chooses an expert by the mean hidden state of the prompt after an early layer.",
        "base_model": base,
        "data": {
            "split": "train, halved by document into train and validation",
            "datasets": sorted(name for sets in FORMS.values() for name in sets),
            "train_prompts": len(prompts) - n,
            "validation_prompts": n,
            "sha256": hashlib.sha256(json.dumps([p[:2] for p in prompts]).encode()).hexdigest(),
        },
        "seed": seed,
        "validation": {
            "accuracy": round(fit.accuracy, 4),
            "loss": round(fit.loss, 4),
            "by_layer": {str(i): round(f.accuracy, 4) for i, f in zip(layers, fits, strict=True)},
            "note": "layer and penalty were chosen by it",
        },
        "seconds": round(time.monotonic() - started, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {model.device.type}",
        "versions": {"t2": __version__, **{name: version(name) for name in ("torch", "transformers", "scikit-learn")}},
    }
    save_probe(probe, output, card)
    return card


def _load(name: str | None) -> tuple[Any, Any, str]:
    from ..harness.fetch import default_model
    from ..harness.plain_model import load_model, load_tokenizer

    source = name or str(default_model())
    model, tokenizer = load_model(source, "model"), load_tokenizer(source, "model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer, name or "SmolLM2-135M-Instruct (t2's default model, Q4_1 weights made dense)"


def _states(model: Any, rows: Sequence[list[int]], layers: Sequence[int]) -> np.ndarray:
    """Return mean hidden states ``[prompts, layers, hidden]``."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = np.empty((len(rows), len(layers), model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for at in tqdm(range(0, len(order), 64), desc="Hidden states", delay=2):
            part = order[at : at + 64]
            found[part] = mean_states(model, [rows[i] for i in part], layers).cpu().numpy()
    return found


def _validation(places: Sequence[int], seed: int) -> np.ndarray:
    """Return which prompts are for validation ``[prompts]``: those of half of the documents."""
    documents = sorted(set(places))
    random.Random(seed).shuffle(documents)  # noqa: S311 - a reproducible split, not a secret
    held = set(documents[: len(documents) // 2])
    return np.array([place in held for place in places])


def _best_fit(states: np.ndarray, labels: np.ndarray, validation: np.ndarray) -> _Fit:
    """Fit one layer's states ``[prompts, hidden]``, the penalty chosen by validation loss; the scaling is folded into the weights."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    train = states[~validation]
    mean, scale = train.mean(0), train.std(0) + 1e-6
    fits = []
    for penalty in PENALTIES:
        found = LogisticRegression(C=penalty, max_iter=1000).fit((train - mean) / scale, labels[~validation])
        chances = found.predict_proba((states[validation] - mean) / scale)
        coefficients, bias = found.coef_ / scale, found.intercept_ - (found.coef_ / scale) @ mean
        accuracy = float((chances.argmax(1) == labels[validation]).mean())
        fits.append(_Fit(accuracy, float(log_loss(labels[validation], chances, labels=found.classes_)), coefficients, bias))
    return min(fits, key=lambda fit: fit.loss)


def _from_files(extra: Mapping[str, Path]) -> list[tuple[str, str, int]]:
    prompts: list[tuple[str, str, int]] = []
    for category, path in extra.items():
        if category in FORMS or category == OTHERS:
            raise T2Error(f"--prompts {category}={path}: {category!r} is a category already; name an expert that t2 has no data for.")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise T2Error(f"{path}, prompts of {category!r}, cannot be read as text: {error}") from error
        lines = [line for line in dict.fromkeys(lines) if line]
        if len(lines) < 20:
            raise T2Error(f"{path} has {len(lines)} different prompts of {category!r}; a probe needs at least 20, one a line.")
        prompts += [(category, line, -1 - len(prompts) - i) for i, line in enumerate(lines[:PER_CATEGORY])]
    return prompts
