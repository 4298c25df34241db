"""Equation 1 against a naive computation, one reply at a time."""

import contextlib
import ctypes
import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, OPTConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from t2.baselines import reinforce
from t2.baselines.reinforce import accumulate_gradient, advantages, loss_gradient, passes, plain_head, recomputed_layers
from t2.baselines.rollout import Rollouts, end_ids, generate, prompt_ids, reply_end
from t2.harness.errors import T2Error

from .. import tiny


def model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=20
    )
    return AutoModelForCausalLM.from_config(config).eval()


def granite(seed):
    """Logits that are the head's output, divided."""
    torch.manual_seed(seed)
    config = GraniteConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=20,
        logits_scaling=0.25, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


PROMPTS = [[5, 6], [7, 8, 9, 10], [11], [12, 13, 14]]
REPLIES = [[3, 4, 2], [5, 2], [6, 7, 8, 9], [2]]


def rollouts():
    p, t = max(map(len, PROMPTS)), max(map(len, REPLIES))
    ids = [[0] * (p - len(x)) + x + y + [0] * (t - len(y)) for x, y in zip(PROMPTS, REPLIES, strict=True)]
    mask = [[0] * (p - len(x)) + [1] * (len(x) + len(y)) + [0] * (t - len(y)) for x, y in zip(PROMPTS, REPLIES, strict=True)]
    reply = [[1.0] * len(y) + [0.0] * (t - len(y)) for y in REPLIES]
    return Rollouts(torch.tensor(ids), torch.tensor(mask), torch.tensor(reply), [""] * len(REPLIES))


def naive_loss(policy, reference, advantage, kl_coef, temperature):
    total = 0.0
    for prompt, reply, a in zip(PROMPTS, REPLIES, advantage, strict=True):
        ids = torch.tensor([prompt + reply])
        logp = torch.log_softmax(policy(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        with torch.no_grad():
            ref = torch.log_softmax(reference(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        chosen = sum(logp[i, token] for i, token in enumerate(reply))
        total = total - a * chosen + kl_coef * (logp.exp() * (logp - ref)).sum()
    return total / len(PROMPTS)


@pytest.mark.parametrize("head", ["trained", "frozen", "scaled"])
@pytest.mark.parametrize("tokens_per_pass", [1, 12, 10_000])
@pytest.mark.parametrize(("kl_coef", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.3, 0.7)])
def test_gradient_is_the_naive_one(tokens_per_pass, kl_coef, temperature, head):
    policy, reference = (granite(seed) if head == "scaled" else model(seed) for seed in (0, 1))
    if head != "trained":
        policy.lm_head.requires_grad_(False)
        reference.lm_head.load_state_dict(policy.lm_head.state_dict())
    base = {n: p.detach().clone() for n, p in reference.named_parameters()}
    own = {n: p.detach().clone() for n, p in policy.named_parameters()}

    @contextlib.contextmanager
    def as_reference():
        for n, p in policy.named_parameters():
            p.data = base[n]
        yield
        for n, p in policy.named_parameters():
            p.data = own[n]

    advantage = torch.tensor([1.0, -1.0, 0.5, -0.25])
    stats = accumulate_gradient(policy, as_reference, rollouts(), advantage, kl_coef, temperature, tokens_per_pass)
    trained = [p for p in policy.parameters() if p.requires_grad]
    got = torch.cat([p.grad.flatten() for p in trained])
    policy.zero_grad()
    loss = naive_loss(policy, reference, advantage.tolist(), kl_coef, temperature)
    loss.backward()
    want = torch.cat([p.grad.flatten() for p in trained])
    assert torch.nn.functional.cosine_similarity(got, want, dim=0) > 0.9999
    assert torch.allclose(got, want, atol=1e-5)
    assert stats.loss == pytest.approx(loss.item(), abs=1e-5)
    assert (stats.kl > 0.01) == (kl_coef > 0)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_that_makes_all_logits_whatever_is_asked_has_the_same_gradient(frozen, monkeypatch):
    gradients = []
    for keeps in (True, False):
        policy = model(0)
        policy.lm_head.requires_grad_(not frozen)
        if not keeps:
            forward = policy.forward
            monkeypatch.setattr(policy, "forward", lambda *args, logits_to_keep=None, forward=forward, **more: forward(*args, **more))
        accumulate_gradient(policy, contextlib.nullcontext, rollouts(), torch.tensor([1.0, -1.0, 0.5, -0.25]), 0.0, 1.0, 12)
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    for kept, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, whole)


def test_a_frozen_head_makes_the_logits_of_a_few_tokens_at_a_time(monkeypatch):
    policy, widths = model(0), []
    assert plain_head(policy, rollouts()) is None and plain_head(granite(0).requires_grad_(False), rollouts()) is None
    policy.lm_head.requires_grad_(False)
    monkeypatch.setattr(loss_gradient, "__defaults__", (*loss_gradient.__defaults__[:-1], 3 * 20))
    policy.lm_head.register_forward_hook(lambda _, __, output: widths.append(output.numel() // 20))
    accumulate_gradient(policy, contextlib.nullcontext, rollouts(), torch.ones(4), 0.1, 1.0, 100)
    assert max(widths) == 4 and sum(widths) < 40  # one token of each reply for the model itself; padding is left out


def test_what_a_pass_needed_is_gone_before_the_next(monkeypatch):
    policy, alive, plain = model(0), [], reinforce.reply_logits
    policy.lm_head.requires_grad_(False)

    def counted(*args, **kwargs):
        gc.collect()
        alive.append(sum(kept() is not None for kept in made))
        return plain(*args, **kwargs)

    made, gradient = [], reinforce.loss_gradient

    def noted(states, *args):
        found = gradient(states, *args)
        made.extend((weakref.ref(states), weakref.ref(found[0])))
        return found

    monkeypatch.setattr(reinforce, "reply_logits", counted)
    monkeypatch.setattr(reinforce, "loss_gradient", noted)
    accumulate_gradient(policy, contextlib.nullcontext, rollouts(), torch.ones(4), 0.1, 1.0, 1)
    assert alive == [0] * 8 and len(made) == 8


def test_recomputed_layers_give_the_same_gradient_and_are_in_use(monkeypatch):
    policy, advantage = model(0), torch.tensor([1.0, -1.0, 0.5, -0.25])
    gradients, calls = [], []
    forward = LlamaDecoderLayer.forward
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda self, *a, **k: (calls.append(1), forward(self, *a, **k))[1])
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for on in (False, True):
        calls.clear()
        policy.zero_grad()
        with recomputed_layers(policy, on):
            accumulate_gradient(policy, contextlib.nullcontext, rollouts(), advantage, 0.0, 1.0, 100)
        gradients.append([p.grad.clone() for p in policy.parameters()])
        assert len(calls) == (4 if on else 2)
        assert not any(m.training for m in policy.modules())
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recomputed_layers_drop_nothing_out_where_the_rate_is_their_own():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 20,
    }
    policy = AutoModelForCausalLM.from_config(OPTConfig(**sizes, dropout=0.5, max_position_embeddings=32)).eval()
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for on in (False, True):
        policy.zero_grad()
        with recomputed_layers(policy, on):
            accumulate_gradient(policy, contextlib.nullcontext, rollouts(), torch.ones(4), 0.0, 1.0, 100)
        gradients.append([p.grad.clone() for p in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert policy.model.decoder.layers[0].dropout == 0.5


def test_passes_cover_every_reply_once_within_the_budget():
    r = rollouts()
    replies = r.reply_mask.sum(1).long()
    prompts = r.mask.sum(1) - replies
    groups = list(passes(prompts, replies, 12))
    assert sorted(i for g in groups for i in g.tolist()) == [0, 1, 2, 3]
    for g in groups:
        assert len(g) == 1 or r.rows(g).ids.numel() <= 12
    assert [len(g) for g in passes(prompts, replies, 1)] == [1, 1, 1, 1]


def test_rows_cut_common_padding():
    part = rollouts().rows(torch.tensor([0, 2]))
    assert part.ids.tolist() == [[5, 6, 3, 4, 2, 0], [0, 11, 6, 7, 8, 9]]
    assert part.reply_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_advantages():
    rewards = torch.tensor([1.0, -1.0, -1.0, -1.0])
    assert advantages(rewards, "none") is rewards
    assert advantages(rewards, "batch").tolist() == [1.5, -0.5, -0.5, -0.5]
    assert advantages(torch.tensor([1.0, -1.0, 1.0, 0.0, 0.0, 3.0]), "leave_one_out", 3).tolist() == [1.0, -2.0, 1.0, -1.5, -1.5, 3.0]
    same = torch.full((9,), -0.1)
    assert (same - same.mean()).any()  # a rounding error, of which AdamW would make a whole step
    assert not advantages(same, "batch").any() and not advantages(same, "leave_one_out", 3).any()


@pytest.mark.parametrize("form", ["policy_base", "base_policy", "k3"])
def test_kl_forms(form):
    torch.manual_seed(0)
    r = rollouts()
    logits, reference = torch.randn(2, 4, r.reply_length, 20)
    _, _, kl = loss_gradient(logits, reference.clone(), r, torch.zeros(4), 0.1, 0.7, form, chunk=60)
    p, q = torch.log_softmax(logits / 0.7, -1), torch.log_softmax(reference / 0.7, -1)
    if form == "policy_base":
        want = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    elif form == "base_policy":
        want = torch.nn.functional.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    else:
        ids = r.ids[:, -r.reply_length :].unsqueeze(-1)
        ratio = (q.gather(-1, ids) - p.gather(-1, ids)).squeeze(-1)
        want = ratio.exp() - 1 - ratio
    assert torch.allclose(kl, want * r.reply_mask, atol=1e-5)
    assert (kl >= 0).all() and kl.sum() > 0.1


def test_two_shares_of_a_batch_add_up_to_the_gradient_of_the_whole():
    policy, advantage = model(0), torch.tensor([1.0, -1.0, 0.5, -0.25])
    accumulate_gradient(policy, contextlib.nullcontext, rollouts(), advantage, 0.0, 1.0, 100)
    whole = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    for share in (torch.tensor([0, 2]), torch.tensor([1, 3])):
        accumulate_gradient(policy, contextlib.nullcontext, rollouts().rows(share), advantage[share], 0.0, 1.0, 100, total=4)
    assert all(torch.allclose(p.grad, w, atol=1e-6) for p, w in zip(policy.parameters(), whole, strict=True))


def test_replies_do_not_depend_on_how_many_prompts_are_answered_at_a_time():
    policy, tokenizer = tiny.model(), tiny.tokenizer(None)
    prompts = ["a", "bcd efg", "hi", "a longer one than the others", "z"]
    whole = generate(policy, tokenizer, prompts, 9, 0)
    parts = [generate(policy, tokenizer, prompts[start : start + 2], 9, 0) for start in (0, 2, 4)]
    assert whole.texts == [text for part in parts for text in part.texts] and any(whole.texts)
    tokens = [ids[mask.bool()].tolist() for part in parts for ids, mask in zip(part.ids, part.mask, strict=True)]
    assert [ids[mask.bool()].tolist() for ids, mask in zip(whole.ids, whole.mask, strict=True)] == tokens


def test_a_rollout_norms_the_weights_of_dora_once(monkeypatch):
    config = LoraConfig(r=4, use_dora=True, target_modules="all-linear", init_lora_weights=False)
    policy, tokenizer = get_peft_model(tiny.model(), config).eval(), tiny.tokenizer(None)
    normed, norm = [], torch.linalg.norm
    monkeypatch.setattr(torch.linalg, "norm", lambda *given, **how: (normed.append(given[0].shape), norm(*given, **how))[1])
    first = generate(policy, tokenizer, ["a", "bcd"], 9, 0).texts
    assert len(normed) == len(policy.targeted_module_names)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    changed = generate(policy, tokenizer, ["a", "bcd"], 9, 0).texts
    policy.merge_adapter()
    assert changed == generate(policy, tokenizer, ["a", "bcd"], 9, 0).texts != first


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs a C library with mallopt (glibc)")
def test_a_freed_tensor_leaves_the_process():
    code = """
import torch
from t2.baselines.memory import return_freed_tensors
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
print(return_freed_tensors())
del (big := [torch.ones(2**22)])[0]  # 16 MB: glibc would take blocks below this size from the heap from now on
start = resident()
kept = [torch.ones(2**20 + 2**10 * i) for i in range(16)]  # 4 MB each
for i in range(0, 16, 2): kept[i] = None
print(resident() - start < 9 * 2**22 and kept[1] is not None)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs a C library with mallopt (glibc)")
def test_a_rollout_does_not_get_its_memory_anew_for_every_token():
    """What is as large as a layer's keys stays; what is larger, of a prompt's layers, goes back."""
    code = """
import resource
import torch
from t2.baselines import rollout
from t2.baselines.memory import return_freed_tensors
from t2.tests import tiny
def allocate(input_ids=None, **how):
    for size in 2**21, 2**23:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100): torch.zeros(size // 4)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start) // (size // 4096) < 10)
    return input_ids
policy = tiny.model()
policy.generate = allocate
return_freed_tensors()
allocate()
rollout.generate(policy, tiny.tokenizer(None), ["a"] * 16, 2000, 0)  # keys of 16 x 2001 x 32 float32
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "False"]


def test_a_long_prompt_is_cut_as_lm_eval_cuts_it(tmp_path):
    lm = HFLM(pretrained=str(tiny.save(tmp_path, template=None, positions=20)), device="cpu")
    seen, prompts = [], ["to the left of it", "short", "a longer one than the others"]
    plain = lm.model.generate
    lm.model.generate = lambda **given: (seen.append(given["input_ids"].tolist()), plain(**given))[1]
    asked = [Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 8}), i) for i, prompt in enumerate(prompts)]
    lm.generate_until(asked, disable_tqdm=True)
    policy, tokenizer = lm.model, tiny.tokenizer(None)
    ours = prompt_ids(policy, tokenizer, prompts, 8)
    assert [len(ids) for ids in ours] == [12, 5, 12]
    generate(policy, tokenizer, prompts, 8, 0)
    scored = [ids for batch in seen[:-1] for ids in batch]
    assert ours[0] in scored and ours[2] in scored and seen[-1][::2] == ours[::2]
    with pytest.raises(T2Error, match="max_new_tokens=20 leaves no room for a prompt in the 20 tokens that the model reads"):
        generate(policy, tokenizer, prompts, 20, 0)


def test_an_empty_prompt_is_told():
    with pytest.raises(T2Error, match="A prompt of the task is empty, and the tokenizer begins with no token of its own"):
        generate(tiny.model(), tiny.tokenizer(None), ["a", ""], 2, 0)


@pytest.mark.parametrize(("own", "ends"), [(5, [5, 257]), ([5, 257], [5, 257]), (None, [257])])
def test_a_reply_ends_where_lm_eval_stops_too(own, ends):
    """At the model's ends of text and at its tokenizer's."""
    policy, tokenizer = tiny.model(), tiny.tokenizer(None)
    policy.generation_config.eos_token_id = own
    assert end_ids(policy, tokenizer) == ends
    bias = torch.zeros(258)
    bias[257] = 1e4  # every reply is <|im_end|> at once
    policy.lm_head.register_forward_hook(lambda _, __, output: output + bias)
    assert generate(policy, tokenizer, ["a", "bcd"], 5, 0).reply_mask.tolist() == [[1], [1]]


@pytest.mark.parametrize(("ends", "own", "taught"), [([7, 9], 9, 9), ([7, 9], 3, 7), (7, 3, 7), (None, 3, 3)])
def test_a_reply_is_taught_to_end_where_generation_stops(ends, own, taught):
    """The tokenizer's end of text where that is one; a GGUF file's tokenizer may name another token."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
    assert reply_end(model, SimpleNamespace(eos_token_id=own)) == taught  # type: ignore[arg-type]
