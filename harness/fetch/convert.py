"""From the default model's GGUF file (Q4_1) to a dense bfloat16 Transformers folder, the same bytes every time."""

import json
from pathlib import Path
from typing import Any

from .files import writing

CONTEXT = 8192  # tokens; the GGUF says so as llama.context_length
WEIGHTS = "model.safetensors"
_SPECIAL = {"bos_token": 1, "eos_token": 2, "pad_token": 2, "unk_token": 0}  # ids; the GGUF says so as tokenizer.ggml.…_token_id


# What Transformers writes about this machine's way of loading, not about the model.
_LOCAL_KEYS = {"config.json": ("_model_name_or_path", "_name_or_path"), "tokenizer_config.json": ("is_local", "local_files_only")}


def _drop(path: Path, keys: tuple[str, ...]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in keys}, indent=2, sort_keys=True) + "\n")


def _tokenizer(gguf: Path) -> Any:
    """Return the tokenizer of the GGUF file: a byte-level BPE, of which transformers' conversion gives vocabulary and merges only.

    The rest of that conversion differs from release to release: 5.17 takes ``<|im_start|>`` for the end of a text, 5.19 ``<|im_end|>``. The
    file says ``pre=smollm``: digits are split one by one before the byte-level pattern. Transformers converts only the second step, and
    then "1234" becomes tokens that the model has hardly seen in training.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = json.loads(found.backend_tokenizer.to_str())
    merges = [tuple(pair) for pair in read["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(read["model"]["vocab"], merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.add_special_tokens([AddedToken(token["content"], special=True, normalized=False) for token in read["added_tokens"]])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        chat_template=found.chat_template,
        **{name: found.convert_ids_to_tokens(i) for name, i in _SPECIAL.items()},
    )


def _dense_state(gguf: Path) -> tuple[Any, dict[str, Any]]:
    """Return (config, weights by name in bfloat16). Dequantised in float32, rounded once; the tied output matrix is left out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    if not config.tie_word_embeddings:
        raise ValueError("the default model's output matrix should be tied to its embeddings")
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in loaded.state_dict().items() if name != "lm_head.weight"}
    return config, state


def convert(gguf: Path, into: Path, progress: bool = True) -> None:
    """Write config, generation config, tokenizer, chat template and ``model.safetensors`` (bfloat16) of `gguf` into `into`.

    The model is rebuilt from the plain config, because a model loaded from GGUF refuses to be saved.

    Args:
        gguf: the GGUF file; its folder must hold nothing else that Transformers would read.
        into: an existing empty folder.
        progress: let Transformers draw its bars on stderr.

    Raises:
        SourceError: the disk is full.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    if not progress:
        hf_logging.disable_progress_bar()
    try:
        config, state = _dense_state(gguf)
        tokenizer = _tokenizer(gguf)
        config.architectures = ["LlamaForCausalLM"]
        config.dtype = torch.bfloat16
        config.rms_norm_eps = 1e-5  # the GGUF holds it rounded to float32
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with writing(into):
            save_file(dict(sorted(state.items())), into / WEIGHTS, metadata={"format": "pt"})
            (into / WEIGHTS).chmod(0o644)  # safetensors writes it for the owner only; a cache may be shared
            config.save_pretrained(into)
            GenerationConfig(**{f"{name}_id": _SPECIAL[name] for name in ("bos_token", "eos_token", "pad_token")}).save_pretrained(into)
            tokenizer.save_pretrained(into)
            for name, keys in _LOCAL_KEYS.items():
                _drop(into / name, keys)
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()
