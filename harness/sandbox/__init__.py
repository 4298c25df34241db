"""Untrusted code judged safely: jailed candidate, jailed judge, a typed verdict. See docs/sandbox.md."""

from .core import Sandbox, active_kind, configured_kind, forget_kinds, unusable
from .verdict import Job, Kind, Limits, SandboxError, SandboxUnavailable, Status, UnusableTests, Verdict

__all__ = [
    "Job",
    "Kind",
    "Limits",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "Status",
    "UnusableTests",
    "Verdict",
    "active_kind",
    "configured_kind",
    "forget_kinds",
    "unusable",
]
