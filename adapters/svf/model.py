"""`SvfModel`: puts `Linear` layers around the targets, the way every PEFT tuner does."""

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..errors import AdapterError
from .config import ATTENTION, MLP
from .fingerprint import check_fingerprint, fingerprint
from .layer import Linear, SvfLayer, check_untied


class _AnyFamily(dict):
    """The default targets are names that Llama, Mistral, Qwen2 and their kin share; an unknown family fails by name, not by type."""

    def get(self, key: str, default: Any = None) -> Any:
        return list(MLP + ATTENTION)


class SvfModel(BaseTuner):
    """A model with SVF adapters; use it through `peft.get_peft_model` and `peft.PeftModel`."""

    prefix: str = "svf_"
    tuner_layer_cls = SvfLayer
    target_module_mapping = _AnyFamily()

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        if isinstance(target, SvfLayer):
            target.update_layer(adapter_name, config=peft_config)  # type: ignore[arg-type]
            return
        module = Linear(target, adapter_name, config=peft_config)  # type: ignore[arg-type]
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)
        self._replace_module(parent, target_name, module, target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """As in PEFT; a new adapter is told the weights that it is for, and one that was trained on others is refused.

        Raises:
            AdapterError: the adapted weights are not those of the config's `base_fingerprint`, or one is an embedding's too. The model is
                left as it was.
        """
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        result = super().inject_adapter(model, adapter_name, *args, **kwargs)
        config: Any = self.peft_config[adapter_name]
        layers = {n: m.base_weight() for n, m in model.named_modules() if isinstance(m, SvfLayer) and adapter_name in m.svf_z}
        try:
            check_untied(model, layers, what=f"Adapter {adapter_name!r}")
            if config.base_fingerprint:
                check_fingerprint(layers, config.base_fingerprint, what=f"Adapter {adapter_name!r}")
        except AdapterError:
            self._take_out(model, adapter_name)
            for parameter, wanted in trainable:
                parameter.requires_grad_(wanted)
            raise
        if not config.base_fingerprint and not config.inference_mode and not any(weight.is_meta for weight in layers.values()):
            config.base_fingerprint = fingerprint(layers)
        return result

    def _take_out(self, model: nn.Module, adapter_name: str) -> None:
        """Delete an adapter, and the layers that were made for it alone."""
        self.delete_adapter(adapter_name)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, SvfLayer) and not len(layer.svf_z):
                model.set_submodule(name, layer.get_base_layer())
