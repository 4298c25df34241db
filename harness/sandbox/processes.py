"""What the processes of a jail use, and whether they compute, as proc(5) shows it to the parent."""

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field

LOOK_SECONDS = 0.25
"""Between looks at the clock, at the cancel flag, and, for all jobs together, at the process table."""


@dataclass
class Usage:
    """What the processes below one use: CPU seconds with those of children waited for, the same of each process alone, bytes of memory."""

    cpu_seconds: float = 0.0
    own: dict[int, float] = field(default_factory=dict)
    memory_bytes: int = 0


class _Table:
    """The process table, read at most every `LOOK_SECONDS` for all watchers together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read = float("-inf")
        self.rows: dict[int, tuple[int, float, float, int]] = {}

    def now(self) -> dict[int, tuple[int, float, float, int]]:
        with self.lock:
            if time.monotonic() - self.read > LOOK_SECONDS:
                self.rows, self.read = _process_table(), time.monotonic()
            return self.rows


_table = _Table()


def forget_processes() -> None:
    """In a forked child: a lock that another thread of the parent held would never open."""
    _table.lock = threading.Lock()


def usage_below(root: int) -> Usage:
    """Return the sum over the processes below `root`, as of `LOOK_SECONDS` ago at most."""
    table = _table.now()
    total = Usage()
    for pid, (_, own, children, memory) in table.items():
        above = pid
        while above in table and above != root:
            above = table[above][0]
        if above == root:
            total.cpu_seconds += own + children
            total.own[pid] = own
            total.memory_bytes += memory
    return total


def computes(pid: int, before: dict[str, int]) -> bool:
    """Return whether a thread of the process runs, or waits for a core or the disk; a sleeper does not.

    Args:
        pid: The process.
        before: Ticks and page faults of each thread at the last look. Who waits for the disk has more of them at the next; who waits
            for a child that sleeps in `vfork`, which looks the same, has not.
    """
    found = False
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, IndexError):
                stat = _stat(f"/proc/{pid}/task/{thread}/stat")
                work = sum(int(stat[i]) for i in (9, 11, 12))
                found |= stat[0] == b"R" or (stat[0] == b"D" and work != before.get(thread))
                before[thread] = work
    return found


def _process_table() -> dict[int, tuple[int, float, float, int]]:
    """Process id → (parent, CPU seconds of its own, of its children waited for, resident bytes)."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    table = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = _stat(f"/proc/{entry.name}/stat")
                own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
                table[int(entry.name)] = (int(fields[1]), own / tick, children / tick, int(fields[21]) * page)
    return table


def _stat(path: str) -> list[bytes]:
    """Fields of proc(5) from the third, the state, on."""
    with open(path, "rb") as file:
        return file.read().rsplit(b")", 1)[1].split()
