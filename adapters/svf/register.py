"""Makes PEFT know SVF. PEFT's `PeftType` is a closed enum (peft issue 2273), so this one file extends it, guarded."""

from typing import Any


def register() -> None:
    """Add ``SVF`` to `peft.PeftType` and register the method; does nothing if that was done, or PEFT has an SVF of its own.

    Raises:
        RuntimeError: this PEFT's enum cannot be extended; the message names the version.
    """
    import peft
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import register_peft_method

    if "SVF" not in PeftType.__members__:
        try:
            _extend(PeftType, "SVF")
        except (AttributeError, TypeError, ValueError) as error:
            raise RuntimeError(f"PEFT {peft.__version__} does not let t2 register SVF ({error}); install peft>=0.21,<0.22.") from error
    if PeftType("SVF") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from .config import SvfConfig
        from .model import SvfModel

        register_peft_method(name="svf", config_cls=SvfConfig, model_cls=SvfModel)


def _extend(enum: Any, name: str) -> None:
    """Add a member to a `str` enum; `enum.Enum` has no public way."""
    member = str.__new__(enum, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = enum
    member._sort_order_ = len(enum._member_names_)
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[name] = member
    type.__setattr__(enum, name, member)
    if enum(name) is not member or enum[name] is not member or not isinstance(member, enum):
        raise TypeError("the enum did not take the new member")
