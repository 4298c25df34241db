"""Untrusted code judged safely: jailed candidate, jailed judge, a typed verdict. See docs/sandbox.md."""

from .core import Sandbox, active_kind, configured_kind, forget_kinds
from .verdict import Job, Limits, SandboxError, SandboxUnavailable, UnusableTests, Verdict

__all__ = [
    "Job",
    "Limits",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "UnusableTests",
    "Verdict",
    "active_kind",
    "configured_kind",
    "forget_kinds",
]
