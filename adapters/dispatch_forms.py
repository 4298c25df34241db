"""The forms of pass 1 by name, and what they all return; a form of one's own is one class in one file (docs/model.md).

A form is made once for a model, from a `Setup`, and has one method: ``decide(contexts, batch_size=None, progress=False)``, which returns a
`Decision` for each context, in order. Whoever calls it sees to it that the model holds the weights of pass 1.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .dispatch_prompt import OTHERS
from .errors import AdapterError
from .mixture import Mixture


@dataclass(frozen=True)
class Decision:
    """What pass 1 found for one prompt.

    Attributes:
        category: the label, ``others`` included.
        tokens_in: tokens of the prompt without its shared instruction, which is read once for all.
        tokens_out: tokens of the reply; 0 where nothing is generated.
        scores: category → probability (calibrated, if so asked), where the form has them.
        reply: what the model said, under ``generate``.
        readable: False if the reply named no category and therefore counts as ``others``.
        abstained: True if no category was probable enough (``abstain=``), which makes it ``others``.
        alphas: expert (``base`` among them) → α, where experts are mixed softly; None: the category's expert alone.
    """

    category: str
    tokens_in: int
    tokens_out: int = 0
    scores: Mapping[str, float] | None = None
    reply: str | None = None
    readable: bool = True
    abstained: bool = False
    alphas: Mapping[str, float] | None = None

    @property
    def mixture(self) -> Mixture:
        """The weights for pass 2: the category's expert, the base weights for ``others``, or the mixture that was found."""
        if self.alphas is not None:
            return Mixture.of(self.alphas)
        return Mixture.base() if self.category == OTHERS else Mixture.single(self.category)


@dataclass(frozen=True)
class Setup:
    """What a form of pass 1 can use.

    Attributes:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        experts: name → expert; their names and ``others`` are the categories. An expert's ``card`` describes it.
        max_length: tokens that fit into the model.
        calibrate: whether probabilities are to be calibrated, where that is possible.
        classifier: whether the weights in pass 1 are those of a classifier expert (``strategy=cls``).
        probe: folder of the probe, for ``probe``; None where there is none.
        template_args: what the chat template is given besides messages, ``enable_thinking`` say.
    """

    model: Any
    tokenizer: Any
    experts: Mapping[str, Any]
    max_length: int = 2048
    calibrate: bool = True
    classifier: bool = False
    probe: Path | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)


class Form(Protocol):
    """A form of pass 1, made for one model."""

    def decide(self, contexts: Sequence[str], batch_size: int | None = None, progress: bool = False) -> list[Decision]:
        """Return a decision for each context, in order."""
        ...


MakeForm = TypeVar("MakeForm", bound=Callable[[Setup], Form])

_HERE = {"score": "dispatch", "generate": "dispatch", "probe": "dispatch_probe"}  # name → the module that registers it
_forms: dict[str, Callable[[Setup], Form]] = {}


def register(name: str) -> Callable[[MakeForm], MakeForm]:
    """Make a class (or a function that takes a `Setup`) the form of pass 1 called `name`: a decorator."""

    def keep(make: MakeForm) -> MakeForm:
        _forms[name] = make
        return make

    return keep


def form_names() -> list[str]:
    """Return the names that `make_form` knows, without a path's."""
    return sorted({*_HERE, *_forms})


def check_form(name: str) -> str:
    """Return `name` if it is a form, or a Python file, whose hash is added: what cached answers depend on.

    Raises:
        AdapterError: neither; the nearest name is suggested.
    """
    if name.endswith(".py"):
        try:
            return f"{Path(name).stem}@{hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()[:8]}"
        except OSError as error:
            raise AdapterError(f"dispatch={name} cannot be read: {error.strerror}.") from None
    if name not in form_names():
        close = get_close_matches(name, form_names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        forms = ", ".join(form_names())
        raise AdapterError(f"Unknown dispatch {name!r}.{hint} It is one of {forms}, a Python file that registers one, or task:<form>.")
    return name


def make_form(name: str, setup: Setup) -> Form:
    """Make a form for a model.

    Args:
        name: of the form, or the path of a Python file (``….py``), which is run and has to register one form.
        setup: what the form can use.

    Raises:
        AdapterError: an unknown name, a file that fails or registers no form or several, or what the form itself refuses.
    """
    check_form(name)
    if name.endswith(".py"):
        return _from_file(Path(name).expanduser())(setup)
    if name not in _forms:
        import_module(f".{_HERE[name]}", __package__)
    return _forms[name](setup)


def plain(name: str, found: Any, asked: int) -> list[Decision]:
    """Return what a form decided in Python's own numbers, as the answer cache and other processes need them; it may be the user's own.

    Args:
        name: of the form.
        found: what its `decide` returned.
        asked: for how many prompts.

    Raises:
        AdapterError: not a decision for each, or what should be a number is none.
    """
    if not isinstance(found, Sequence) or any(not isinstance(decision, Decision) for decision in found):
        raise AdapterError(f"dispatch={name} has to return a list with a Decision for each prompt; it returned {str(found)[:100]}.")
    if len(found) != asked:
        raise AdapterError(f"dispatch={name} decided {len(found)} of {asked} prompts; it has to decide each.")
    try:
        made = [
            replace(
                decision,
                tokens_in=int(decision.tokens_in),
                tokens_out=int(decision.tokens_out),
                scores=None if decision.scores is None else {key: float(p) for key, p in decision.scores.items()},
                alphas=None if decision.alphas is None else {key: float(alpha) for key, alpha in decision.alphas.items()},
            )
            for decision in found
        ]
        _ = [decision.mixture for decision in made]
    except (AdapterError, AttributeError, TypeError, ValueError) as error:
        raise AdapterError(f"dispatch={name} gave what is no decision: {error}") from None
    return made


def _from_file(path: Path) -> Callable[[Setup], Form]:
    before = dict(_forms)
    name = f"t2_dispatch_{path.stem}"
    spec: Any = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = [make for key, make in _forms.items() if before.get(key) is not make]
    except Exception as error:
        raise AdapterError(f"dispatch={path} failed: {type(error).__name__}: {error}") from error
    finally:  # a file's form goes by its path, so that it cannot take another's name
        _forms.clear()
        _forms.update(before)
    if len(made) != 1:
        raise AdapterError(f'dispatch={path} has to register one form (`@register("name")` above its class); it registered {len(made)}.')
    return made[0]
