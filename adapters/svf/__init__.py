"""SVF (singular value fine-tuning, section 3.1 of the paper) as a PEFT method.

Importing this package registers it, after which `peft.get_peft_model(model, SvfConfig())` and `PeftModel.from_pretrained` work.
"""

from .register import register

register()

from .basis import Basis, compute_basis, renormalised_scale  # noqa: E402
from .cache import cached_basis  # noqa: E402
from .config import PRESETS, SvfConfig  # noqa: E402
from .fingerprint import check_fingerprint, fingerprint, model_fingerprint, weights_digest  # noqa: E402
from .layer import SvfLayer  # noqa: E402

__all__ = [
    "PRESETS",
    "Basis",
    "SvfConfig",
    "SvfLayer",
    "cached_basis",
    "check_fingerprint",
    "compute_basis",
    "fingerprint",
    "model_fingerprint",
    "register",
    "renormalised_scale",
    "weights_digest",
]
