"""The outcomes of a search under way, so that an interrupted one resumes."""

import json
import logging
from pathlib import Path
from typing import Any

from ...adapters.search import Outcome
from .mixture_file import write_json

log = logging.getLogger("t2")


class Journal:
    """Outcomes of a search under way, beside its mixture file: with them the same command resumes an interrupted search.

    Args:
        output: the mixture file to be.
        key: hash of everything that outcomes depend on; a journal with another key is put aside, as ``….old``.

    Raises:
        T2Error: the folder cannot be written to.

    Attributes:
        outcomes: by name of the configuration, then by candidate as text.
        seconds: spent so far, earlier runs included.
        tokens: generated so far, earlier runs included.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.path, self._key = output.with_name(output.name + ".search"), key
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.seconds, self.tokens = 0.0, 0
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                for outcome in (outcome for found in kept["outcomes"].values() for outcome in found.values()):
                    Outcome.of(outcome)  # complains of what is no outcome
                self.outcomes, self.seconds, self.tokens = kept["outcomes"], float(kept["seconds"]), int(kept["tokens"])
            else:
                old = self.path.with_name(f"{self.path.name}.old")
                self.path.replace(old)
                log.warning("%s is of other settings, weights, documents or versions: begun anew. It is kept as %s.", self.path, old.name)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s): begun anew.", self.path, error)
        self.save()

    def save(self) -> None:
        """Write what is known."""
        write_json(self.path, {"key": self._key, "seconds": self.seconds, "tokens": self.tokens, "outcomes": self.outcomes})

    def remove(self) -> None:
        """Delete it: the search is done."""
        self.path.unlink(missing_ok=True)
