"""Mixture files: what `t2 adapt` found, and all that it depends on. ``lm_eval --model t2 --model_args mixture=FILE`` reads one."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.errors import AdapterError
from ...adapters.experts import Expert
from ...adapters.files import write_whole
from ...adapters.mixture import Mixture
from ...adapters.search.space import mixture_of
from ..errors import T2Error

SCHEMA = 1
_KINDS = {"task": str, "alpha": dict, "base": dict, "experts": dict, "documents": list, "configuration": dict}


@dataclass(frozen=True)
class MixtureFile:
    """A mixture file that has been read and checked.

    Attributes:
        path: of the file.
        data: its content (docs/fewshot.md lists the fields).
        mixture: the mixture; the base where the search found no signal.
        sha256: of the file.
    """

    path: Path
    data: Mapping[str, Any]
    mixture: Mixture
    sha256: str

    @property
    def marks(self) -> set[str]:
        """Of the documents that α was chosen on, see `t2.harness.fewshot.documents.marks`."""
        names = ("sha256", "question_sha256", "question_id")
        return {str(document[name]) for document in self.data["documents"] for name in names if document.get(name)}

    def facts(self) -> dict[str, Any]:
        """Return what the results tell of it."""
        configuration = self.data["configuration"]
        return {
            "sha256": self.sha256,
            "task": self.data["task"],
            "alpha": self.data["alpha"],
            "shots": configuration.get("shots"),
            "splits": sorted({str(document.get("split")) for document in self.data["documents"]}),
            "configuration_chosen": configuration.get("chosen"),
        }

    def check(self, base: str, experts: Mapping[str, Expert]) -> None:
        """Raise `T2Error` unless the mixture was found on these base weights, with these very experts.

        Args:
            base: fingerprint of the model's base weights.
            experts: those at hand, all that the mixture names among them.
        """
        expected = self.data["base"].get("fingerprint")
        if expected != base:
            raise T2Error(
                f"{self.path} was made on base weights with fingerprint {expected} ({self.data['base'].get('name')}); "
                f"this model's is {base}. Load that model (pretrained=…), or delete the file and search again with `t2 adapt`."
            )
        for name in self.mixture.experts:
            sha256 = self.data["experts"].get(name, {}).get("sha256")
            if experts[name].sha256 != sha256:
                raise T2Error(
                    f"{self.path} was made with an expert {name!r} whose weights have sha256 {sha256}; the one here has "
                    f"{experts[name].sha256}. Name the right folder with experts=…, or delete the file and search again with `t2 adapt`."
                )
            form = experts[name].svf_form
            if (then := self.data["experts"][name].get("svf_form", form)) != form:  # older files do not tell it
                raise T2Error(
                    f"{self.path} was made with an expert {name!r} of the form {then}; the one here has the form {form}. "
                    "Name the right folder with experts=…, or delete the file and search again with `t2 adapt`."
                )
            depth = experts[name].depth
            if self.mixture.layers and len(self.mixture.layers[0]) < depth:
                raise T2Error(
                    f"{self.path} has α for {len(self.mixture.layers[0])} layers; the expert {name!r} adapts {depth}: "
                    "the file was changed. Delete it and search again with `t2 adapt`."
                )


def read_mixture(path: str | Path) -> MixtureFile:
    """Read a mixture file.

    Raises:
        T2Error: it is missing, truncated, of a newer t2, or not a mixture file; says which.
    """
    path = Path(path).expanduser()
    try:
        raw = path.read_bytes()
        data = json.loads(raw)
    except FileNotFoundError:
        raise T2Error(f"mixture={path}: there is no such file. `t2 adapt --task TASK` makes one.") from None
    except (OSError, ValueError) as error:
        raise T2Error(
            f"mixture={path} cannot be read as JSON ({error}): it is damaged, or no mixture file. Make it again by `t2 adapt`."
        ) from None
    if not isinstance(data, dict) or "t2_mixture" not in data:
        raise T2Error(f"mixture={path} is no mixture file: it has no field t2_mixture. `t2 adapt` makes one.")
    if not isinstance(data["t2_mixture"], int) or data["t2_mixture"] > SCHEMA:
        raise T2Error(f"mixture={path} has format {data['t2_mixture']!r}; this t2 reads up to {SCHEMA}. Upgrade t2.")
    for name, kind in _KINDS.items():
        if not isinstance(data.get(name), kind):
            raise T2Error(f"mixture={path}: field {name!r} is missing or not of type {kind.__name__}. Make the file again by `t2 adapt`.")
    if any(not isinstance(document, dict) or "sha256" not in document for document in data["documents"]):
        raise T2Error(f"mixture={path}: every entry of 'documents' needs a sha256. Make the file again by `t2 adapt`.")
    if alien := next((name for name, expert in data["experts"].items() if not isinstance(expert, dict)), None):
        raise T2Error(f"mixture={path}: expert {alien!r} must have a sha256, by name. Make the file again by `t2 adapt`.")
    try:
        mixture = mixture_of(data["alpha"]) or Mixture.base() if data["alpha"] else Mixture.base()
    except (AdapterError, TypeError, ValueError) as error:
        raise T2Error(f"mixture={path}: 'alpha' holds no usable α ({error}). Make the file again by `t2 adapt`.") from None
    return MixtureFile(path, data, mixture, hashlib.sha256(raw).hexdigest())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        T2Error: it cannot be written.
    """
    content = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.encode())
    except OSError as error:
        raise T2Error(
            f"{path} cannot be written ({error.strerror}): make room or choose another --output. The same command goes on."
        ) from None


def check_writable(path: Path) -> None:
    """Raise `T2Error` unless a file can be made at `path`."""
    write_json(path.with_name(f"{path.name}.{os.getpid()}.test"), {})
    path.with_name(f"{path.name}.{os.getpid()}.test").unlink()


def contaminated(
    mixture: MixtureFile, tasks: Mapping[str, Any], limit: float | None, samples: Mapping[str, list[int]] | None
) -> dict[str, list[int]]:
    """Return task → ids of the evaluated documents that α was chosen on; empty where the score is clean.

    Documents are told by their content, their question or its number: one that the train split, another wording or another version of the
    data set repeats counts.

    Args:
        mixture: in force.
        tasks: name → lm-eval's task.
        limit: lm-eval's argument of that name.
        samples: likewise.
    """
    from lm_eval.evaluator_utils import get_sample_size

    from .documents import marks

    found: dict[str, list[int]] = {}
    chosen_on = mixture.marks
    for name, task in tasks.items():
        indices = (samples or {}).get(name)
        documents = task.doc_iterator(limit=get_sample_size(task, limit), samples=indices)
        asked = sorted(set(indices)) if indices else None
        seen = [place for place, doc in documents if chosen_on.intersection(marks(task, doc))]
        if ids := [asked[place] if asked else place for place in seen]:
            found[name] = ids
    return found
