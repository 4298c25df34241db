"""A file of verdicts that grows line by line while samples are scored, so that a killed run goes on where it stopped."""

import fcntl
import json
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from ..harness.errors import T2Error

log = logging.getLogger(__name__)


class Journal:
    """The verdicts so far. Its first line says what they belong to; a file that belongs to something else is begun anew.

    Args:
        path: the file; made if it is not there.
        belongs: what the verdicts depend on, as plain JSON values.

    Attributes:
        done: result texts by number of the sample; ``passed`` and nothing else is a pass.

    Raises:
        T2Error: the file cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, belongs: dict[str, Any]) -> None:
        self.path, self.done = path, dict[int, str]()
        self._lock = threading.Lock()
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise T2Error(f"{path} cannot be written ({error.strerror}): the verdicts have to lie beside the samples.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise T2Error(f"{path}: another `t2 score-code` is scoring this file.") from None
        except OSError as error:  # a file system that has no locks
            log.warning("%s cannot be locked (%s): see that no other `t2 score-code` scores this file.", path, error.strerror)
        self._read(json.dumps(belongs).encode())

    def _read(self, head: bytes) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]  # a kill may have cut the last line
        first, *lines = whole.split(b"\n")
        if first != head:
            if data:
                log.warning("%s is of other samples, or of another version: not used", self.path)
            self._file.truncate(0)
            self._append(head)
            return
        self._file.truncate(len(whole))
        for line in lines:
            try:
                match json.loads(line):
                    case [int(index), str(result)]:
                        self.done[index] = result
            except ValueError:
                continue  # judged again

    def _append(self, line: bytes) -> None:
        try:
            data = memoryview(line + b"\n")
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise T2Error(f"{self.path}: {error.strerror}. The same command goes on once that is mended.") from None

    def add(self, index: int, result: str) -> None:
        """Keep the result of sample `index`; may be called by several threads."""
        with self._lock:
            self._append(json.dumps([index, result]).encode())
            self.done[index] = result

    def remove(self) -> None:
        """Delete the file: the verdicts are kept elsewhere now."""
        self.path.unlink()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
