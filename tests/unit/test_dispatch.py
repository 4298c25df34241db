"""Pass 1: what is asked and read, and scores that do not depend on batching, padding or the shared beginning."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedTokenizerFast,
)

from t2.adapters.dispatch import MAX_QUESTION, Dispatcher, told_apart
from t2.adapters.dispatch_forms import Decision, Setup, check_form, form_names, make_form
from t2.adapters.dispatch_prompt import LEAD_IN, categories, instruction, parse_reply
from t2.adapters.dispatch_text import ChatFrame, adaptation_prompt, encode, encode_after, shorten
from t2.adapters.errors import AdapterError
from t2.adapters.mixture import Mixture
from t2.adapters.prefix import SharedPrefix
from t2.harness.adaptive import Adaptive

from .. import tiny

EXPERTS = dict.fromkeys(("reasoning", "math", "code"))
NAMES = ["code", "math", "reasoning", "others"]
QUESTIONS = [
    "What is 3 + 4?",
    "Write a function that reverses a list." * 6,
    "x",
    "",
    "Which of these is a mammal: whale, trout, eagle?\nAnswer:",
    "¿Cuántas patas tiene un perro? 狗有几条腿",
]
LLAMA3 = (
    "<|im_start|>{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
MISTRAL = (
    "<|im_start|>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% elif m['role'] == 'user' %}"
    "[INST] {{ m['content'] }}[/INST]{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.mark.parametrize(
    ("reply", "category"),
    [
        (r"Classification: \boxed{math}", "math"),
        (r"\boxed{Math}", "math"),
        (r"\boxed{ 'code' }", "code"),
        (r"\boxed{\text{reasoning}}", "reasoning"),
        (r"\\boxed {**Others**}", "others"),
        (r"\boxed{2. Math}", "math"),
        (r"\boxed{code} no, rather \boxed{math}.", "math"),
        (r"\boxed{the category is \textbf{code}}", "code"),
        (r"\boxed{math", "math"),
        (r"\boxed{code or math}", None),
        (r"\boxed{mathematics}", None),
        (r"\boxed{}", None),
        (r"\boxed{category}", None),
        ("math", None),
        ("", None),
    ],
)
def test_the_last_box_is_read_tolerantly_and_nothing_else(reply, category):
    assert parse_reply(reply, NAMES) == category


def test_categories_follow_the_experts_that_are_there():
    assert [c.name for c in categories(EXPERTS)] == NAMES
    assert [c.name for c in categories({"math": None})] == ["math", "others"]
    law = SimpleNamespace(card={"description": "Questions about\n contracts."})
    found = categories({"law": law, "code": None, "plain_chat": None})
    assert [c.name for c in found] == ["code", "law", "plain_chat", "others"]
    assert found[1].description == "Questions about contracts."
    own = SimpleNamespace(card={"description": "Olympiad geometry."})
    assert categories({"math": own})[0].description == "Olympiad geometry."
    text = instruction(found)
    assert "one of four categories: 'code', 'law', 'plain_chat' or 'others'" in text and "2. Law: Questions about contracts." in text
    assert "Questions about plain chat." in text and "math" not in text.lower().replace("mathematical", "")


def test_shipped_experts_are_asked_for_in_the_words_that_a_classifier_learns():
    from t2.adapters.experts import load_expert, shipped
    from t2.tasks.dispatch.items import OPTIONS

    loaded = {name: load_expert(path) for name, path in shipped().items()}
    assert categories({name: e for name, e in loaded.items() if not e.is_classifier}) == OPTIONS


def test_others_means_the_base_weights():
    assert Decision("others", 1).mixture == Mixture.base()
    assert Decision("math", 1).mixture == Mixture.single("math")


@pytest.mark.parametrize(
    ("reply", "category"),
    [
        (r"\boxed{math-v2}", "math-v2"),
        (r"\boxed{math}", "math"),
        (r"the category is \boxed{\text{Math-v2}}", "math-v2"),
        (r"\boxed{math or math-v2}", None),
        (r"\boxed{math.v3}", "math.v3"),
    ],
)
def test_a_name_that_begins_with_another_is_read_whole(reply, category):
    assert parse_reply(reply, ["math", "math-v2", "math.v3", "others"]) == category


@pytest.mark.parametrize("template", [tiny.CHATML, LLAMA3, MISTRAL], ids=["chatml", "llama3", "mistral"])
def test_the_question_is_the_last_user_turn(template):
    tokenizer = tiny.tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|head|>", "<|/head|>", "<|eot|>"]})
    frame = ChatFrame(tokenizer)

    def say(*turns):
        return tokenizer.apply_chat_template(
            [{"role": r, "content": c} for r, c in turns], tokenize=False, add_generation_prompt=turns[-1][0] == "user"
        )

    asked = "What is 2 + 2?\nAnswer:"
    assert frame.question(say(("user", asked))) == asked
    assert frame.question(say(("user", "1 + 1?"), ("assistant", "2"), ("user", asked))) == asked
    assert frame.question(say(("user", asked)) + "The answer is") == asked  # a reply that has been begun for the model
    if template != MISTRAL:
        assert frame.question(say(("system", "Do sums."), ("user", asked))) == asked
    assert frame.question("Q: 1\nA: 1\n\nQ: 2\nA:") == "Q: 1\nA: 1\n\nQ: 2\nA:"  # no template: all of it, few-shot examples too
    assert frame.question("a<|im_end|>b") == "a b"


def test_the_prompt_goes_into_the_template_or_stands_alone():
    options = categories(EXPERTS)
    before, after = adaptation_prompt(tiny.tokenizer(), options)
    assert before.startswith("<|im_start|>system\nAnalyze the given question") and before.endswith("<|im_start|>user\n")
    assert after == "<|im_end|>\n<|im_start|>assistant\n"
    before, after = adaptation_prompt(tiny.tokenizer(MISTRAL), options)
    assert before.startswith("<|im_start|>[INST] Analyze") and before.endswith("Question:\n") and after == "[/INST]"
    before, after = adaptation_prompt(tiny.tokenizer(None), options)
    assert before.startswith("Analyze") and before.endswith("Question:\n") and after == "\n\n"


def test_what_the_chat_template_is_told_besides_messages_reaches_the_prompt():
    unthinking = "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    tokenizer = tiny.tokenizer(tiny.CHATML.replace("assistant\n{% endif %}", unthinking))
    _, after = adaptation_prompt(tokenizer, categories(EXPERTS), template_args={"enable_thinking": False})
    assert after.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert adaptation_prompt(tokenizer, categories(EXPERTS))[1].endswith("<|im_start|>assistant\n")
    context = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1?"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert ChatFrame(tokenizer, {"enable_thinking": False}).question(context) == "1 + 1?"
    told = Adaptive._template_args(SimpleNamespace(chat_template_args={"enable_thinking": False}))  # type: ignore[arg-type]
    assert told == Adaptive._template_args(SimpleNamespace(enable_thinking=False, chat_template_args={}))  # type: ignore[arg-type]
    setup = Setup(tiny.model(), tokenizer, EXPERTS, max_length=4096, template_args=told)
    assert tokenizer.decode(make_form("score", setup)._after).endswith(f"</think>\n\n{LEAD_IN}")


def test_long_questions_keep_their_start_and_more_of_their_end():
    assert shorten(range(5), 8) == [0, 1, 2, 3, 4]
    assert shorten(range(100), 8) == [0, 1, 94, 95, 96, 97, 98, 99]
    assert shorten(range(8), 8) == list(range(8))


def plain_scores(model, tokenizer, question):
    """The same scores the slow way: one text and one name at a time, no cache, no padding."""
    before, after = adaptation_prompt(tokenizer, categories(EXPERTS))
    start = tokenizer.encode(before + question + after + LEAD_IN, add_special_tokens=False)
    scores = []
    for name in NAMES:
        ids = torch.tensor([start + tokenizer.encode(name[0], add_special_tokens=False)])  # a token a letter, and all begin differently
        with torch.inference_mode():
            logs = model(input_ids=ids).logits.float().log_softmax(-1)
        scores.append(sum(logs[0, i - 1, ids[0, i]] for i in range(len(start), ids.shape[1])))
    return torch.stack(scores)


def test_scores_equal_a_plain_forward_pass(model):
    tokenizer = tiny.tokenizer()
    expected = torch.stack([plain_scores(model, tokenizer, q) for q in QUESTIONS])
    assert (expected[0] - expected[1]).abs().max() > 0.05  # the question does matter to this model
    for share in (True, False):
        chooser = Dispatcher(model, tokenizer, EXPERTS, calibrate=False, max_length=4096, share=share)
        for size in (1, 4, 16):
            found = chooser.decide(QUESTIONS, size)
            got = torch.tensor([[d.scores[n] for n in NAMES] for d in found]).log()
            torch.testing.assert_close(got, expected.log_softmax(-1), atol=2e-4, rtol=1e-4)
            assert [d.category for d in found] == [NAMES[int(row.argmax())] for row in expected]


def sentencepiece():
    """A tokenizer like Llama 2's: a space, which it writes ▁, before every text; a token a letter, and one for each name."""
    pieces = [*map(chr, range(33, 127)), "▁", *NAMES, *(f"▁{name}" for name in NAMES)]
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((p, -10.0 if len(p) == 1 else -1.0) for p in pieces)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_names_are_scored_as_they_stand_in_the_box(model):
    tokenizer = sentencepiece()
    assert tokenizer.tokenize("math}") == ["▁math", "}"]
    chooser = Dispatcher(model, tokenizer, EXPERTS, max_length=4096)
    assert [tokenizer.convert_ids_to_tokens(name) for name in chooser._names] == [[name] for name in NAMES]
    assert encode_after(tokenizer, "so ma", "th} it is") == encode(tokenizer, "th} it is")  # no beginning in common


def test_names_are_scored_as_far_as_they_differ(model):
    assert told_apart([[7, 9], [8, 9], [6, 1, 9]]) == [[7], [8], [6]]
    assert told_apart([[1, 2, 9], [1, 2, 3, 9], [4, 9]]) == [[1, 2, 9], [1, 2, 3], [4]]
    assert told_apart([[5, 6]]) == [[5]]
    tokenizer = tiny.tokenizer()
    experts = dict.fromkeys(("mat", "math", "code"))
    (found,) = Dispatcher(model, tokenizer, experts, calibrate=False, max_length=4096).decide(QUESTIONS[:1])
    before, after = adaptation_prompt(tokenizer, categories(experts))
    start = tokenizer.encode(before + QUESTIONS[0] + after + LEAD_IN, add_special_tokens=False)
    logs = {}
    for name, scored in {"mat": "mat}", "math": "math", "code": "c", "others": "o"}.items():
        ids = torch.tensor([start + tokenizer.encode(scored, add_special_tokens=False)])
        with torch.inference_mode():
            each = model(input_ids=ids).logits.float().log_softmax(-1)
        logs[name] = sum(each[0, i - 1, ids[0, i]] for i in range(len(start), ids.shape[1]))
    expected = torch.stack(list(logs.values())).softmax(-1)
    torch.testing.assert_close(torch.tensor([found.scores[n] for n in logs]), expected, atol=2e-4, rtol=1e-3)


def test_calibration_divides_by_what_empty_questions_get(model):
    tokenizer = tiny.tokenizer()
    bias = torch.stack([plain_scores(model, tokenizer, q).softmax(-1) for q in ("N/A", "", "[MASK]")]).mean(0).log()
    expected = (torch.stack([plain_scores(model, tokenizer, q) for q in QUESTIONS]) - bias).softmax(-1)
    found = Dispatcher(model, tokenizer, EXPERTS, max_length=4096).decide(QUESTIONS)
    torch.testing.assert_close(torch.tensor([[d.scores[n] for n in NAMES] for d in found]), expected, atol=2e-4, rtol=1e-3)


def test_replies_do_not_depend_on_sharing_or_batching(model):
    tokenizer = tiny.tokenizer()
    runs = [
        [d.reply for d in Dispatcher(model, tokenizer, EXPERTS, "generate", max_length=4096, share=share).decide(QUESTIONS[:4], size)]
        for share, size in ((True, 3), (False, 1))
    ]
    assert runs[0] == runs[1] and len(set(runs[0])) > 1


def assert_batch_does_not_matter(model, questions):
    runs = [
        [list((d.scores or {}).values()) for d in Dispatcher(model, tiny.tokenizer(), EXPERTS, max_length=4096, share=share).decide(texts)]
        for share, texts in [(True, questions), *((False, [q]) for q in questions)]
    ]
    assert torch.allclose(torch.tensor(runs[0]), torch.tensor([run[0] for run in runs[1:]]), atol=1e-4)


@pytest.mark.parametrize("window", [64, 2000])
def test_a_short_attention_window_does_not_make_pass_one_depend_on_the_batch(window):
    torch.manual_seed(1)
    own = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(**own, vocab_size=258, max_position_embeddings=4096, sliding_window=window, initializer_range=0.3)
    assert_batch_does_not_matter(AutoModelForCausalLM.from_config(config).eval(), [*QUESTIONS[:3], "Why? " * 200])


@pytest.mark.parametrize(
    ("config", "shared"),
    [
        (MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=258, max_seq_len=4096, initializer_range=0.3), False),
        (BloomConfig(hidden_size=32, n_head=4, n_layer=2, vocab_size=258, initializer_range=0.3), True),
    ],
    ids=["mpt", "bloom"],
)
def test_nor_do_models_that_cannot_be_told_positions(config, shared):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert_batch_does_not_matter(model, [*QUESTIONS[:3], "Why? " * 200])
    assert bool(SharedPrefix(model, [1, 2, 3], 0).cache([[4]]).get_seq_length()) is shared


def test_a_model_with_a_state_that_prompts_cannot_share_is_refused():
    model = AutoModelForCausalLM.from_config(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=258, state_size=4))
    with pytest.raises(AdapterError, match=r"MambaForCausalLM keeps a state besides keys and values .* Use dispatch=probe"):
        Dispatcher(model, tiny.tokenizer(), EXPERTS)


def test_replies_are_greedy_whatever_the_model_s_own_generation_settings(model, monkeypatch):
    def replies():
        return [d.reply for d in Dispatcher(model, tiny.tokenizer(), EXPERTS, "generate", max_length=4096).decide(QUESTIONS[:4])]

    plain, own = replies(), GenerationConfig(repetition_penalty=9.0, no_repeat_ngram_size=1, do_sample=True)
    monkeypatch.setattr(model, "generation_config", own)
    assert replies() == plain
    assert model.generation_config is own


def test_unreadable_replies_count_as_others(model):
    chooser = Dispatcher(model, tiny.tokenizer(), EXPERTS, "generate", max_length=4096)
    found = chooser.decide(QUESTIONS[:2])
    assert [(d.category, d.readable) for d in found] == [("others", False)] * 2
    assert chooser.unreadable == 2 and found[0].tokens_out > 0 and found[0].scores is None


def test_a_readable_reply_is_followed_and_ends_with_its_box(model, monkeypatch):
    tokenizer = tiny.tokenizer()
    said = tokenizer.encode("So: \\boxed{math} and so on and on", add_special_tokens=False)

    def forward(*args, position_ids=None, input_ids=None, past_key_values=None, **kwargs):
        out = type(model).forward(model, *args, position_ids=position_ids, input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        step = past_key_values.get_seq_length() - start
        out.logits = torch.nn.functional.one_hot(torch.tensor(said[step]), out.logits.shape[-1]).expand(out.logits.shape[0], 1, -1) * 1e4
        return out

    chooser = Dispatcher(model, tokenizer, EXPERTS, "generate", max_length=4096)
    start = len(chooser._prefix.ids) + len(QUESTIONS[0]) + len(chooser._after)
    chooser._prefix.cache([[]])
    monkeypatch.setattr(model, "forward", forward)
    (found,) = chooser.decide(QUESTIONS[:1])
    assert (found.category, found.readable, found.reply) == ("math", True, "So: \\boxed{math}")


def test_a_question_that_is_too_long_is_cut_to_fit(model):
    limits = [Dispatcher(model, tiny.tokenizer(), EXPERTS, max_length=4096).decide(["y" * 9000])[0].tokens_in]
    chooser = Dispatcher(model, tiny.tokenizer(), EXPERTS, max_length=1500)
    limits.append(chooser.decide(["y" * 9000])[0].tokens_in)
    assert limits[0] - len(chooser._after) == MAX_QUESTION
    assert len(chooser._prefix.ids) + limits[1] + len("r") == 1500
    with pytest.raises(AdapterError, match="max_length=900 leaves no room"):
        Dispatcher(model, tiny.tokenizer(), EXPERTS, max_length=900)


def test_running_out_of_memory_halves_the_batch(model, monkeypatch):
    chooser = Dispatcher(model, tiny.tokenizer(), EXPERTS, max_length=4096)
    expected = [d.category for d in chooser.decide(QUESTIONS)]
    whole, sizes = chooser._prefix.last_logits, []

    def small(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory")
        return whole(rows)

    monkeypatch.setattr(chooser._prefix, "last_logits", small)
    assert [d.category for d in chooser.decide(QUESTIONS)] == expected
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]


def test_what_cannot_be_dispatched_is_refused(model):
    with pytest.raises(AdapterError, match="no expert"):
        Dispatcher(model, tiny.tokenizer(), {})
    with pytest.raises(AdapterError, match="cannot be called 'others'"):
        Dispatcher(model, tiny.tokenizer(), {"others": None, "math": None})


def test_a_classifier_is_asked_as_it_was_trained():
    from t2.baselines.dispatch_task import DISPATCH
    from t2.baselines.rollout import chat_prompts
    from t2.tasks.dispatch.items import OPTIONS

    for template in (tiny.CHATML, LLAMA3, MISTRAL):
        tokenizer = tiny.tokenizer(template)
        before, after = adaptation_prompt(tokenizer, OPTIONS, system_turn=False)
        assert before + "What is 3 + 4?" + after == chat_prompts(tokenizer, [DISPATCH.prompt({"question": "What is 3 + 4?"})])[0]
    before, _ = adaptation_prompt(tiny.tokenizer(), OPTIONS)
    assert before != adaptation_prompt(tiny.tokenizer(), OPTIONS, system_turn=False)[0]


def test_forms_by_name(model):
    setup = Setup(model, tiny.tokenizer(), EXPERTS, max_length=4096, calibrate=False)
    for name in ("score", "generate"):
        made = make_form(name, setup).decide(QUESTIONS[:3])
        assert made == Dispatcher(model, setup.tokenizer, EXPERTS, name, False, 4096).decide(QUESTIONS[:3])
    assert form_names() == ["generate", "probe", "score"]
    with pytest.raises(
        AdapterError, match=r"Unknown dispatch 'scores'. Did you mean 'score'\? It is one of generate, probe, score, a Python file"
    ):
        make_form("scores", setup)


KEYWORDS = Path(__file__).parents[1] / "examples" / "keywords.py"


def test_a_form_of_ones_own_is_one_short_file_that_the_docs_show(model):
    setup = Setup(model, tiny.tokenizer(), EXPERTS)
    source = KEYWORDS.read_text()
    assert len(source.splitlines()) < 60 and source in (KEYWORDS.parents[2] / "docs" / "model.md").read_text()
    for _ in range(2):  # a second model in the same process
        found = make_form(str(KEYWORDS), setup).decide(["Write a Python function.", "How many eggs? Solve it.", "Hello"])
        assert [d.category for d in found] == ["code", "math", "others"] and found[0].scores == {"code": 1.0, "math": 0.0, "reasoning": 0.0}
    assert form_names() == ["generate", "probe", "score"]
    assert check_form(str(KEYWORDS)).startswith("keywords@") and len(check_form(str(KEYWORDS))) == len("keywords@") + 8


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nowhere_to_be_found", "failed: ModuleNotFoundError"),
        ("x = (", "failed: SyntaxError"),
        ("x = 1", "it registered 0"),
        ("from t2.adapters.dispatch_forms import register\nfor n in 'ab':\n    register(n)(lambda setup, n=n: None)", "it registered 2"),
    ],
)
def test_a_file_that_is_no_form_is_told(tmp_path, source, says):
    file = tmp_path / "own.py"
    file.write_text(source)
    with pytest.raises(AdapterError, match=r"own.py") as caught:
        make_form(str(file), Setup(None, None, EXPERTS))
    assert says in str(caught.value)
    assert form_names() == ["generate", "probe", "score"]
    with pytest.raises(AdapterError, match="cannot be read: No such file"):
        make_form(str(tmp_path / "none.py"), Setup(None, None, EXPERTS))
