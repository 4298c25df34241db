"""The probe: nothing after its layer, the right numbers, files that are whole, and train splits only."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from t2.adapters import dispatch_probe
from t2.adapters.dispatch_forms import Setup, make_form
from t2.adapters.early_exit import decoder_layers, mean_states
from t2.adapters.errors import AdapterError
from t2.adapters.experts import shipped
from t2.adapters.probe import Probe, layers_fingerprint, load_probe, save_probe
from t2.baselines import probe as training
from t2.baselines import probe_prompts
from t2.harness.errors import T2Error

from .. import tiny

ROWS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def test_mean_states_are_those_of_a_plain_forward_pass(model):
    with torch.inference_mode():
        found = mean_states(model, ROWS, [1, 2], pad_id=200)
        for row, states in zip(ROWS, found, strict=True):
            hidden = []
            hook = decoder_layers(model)[1].register_forward_hook(lambda m, a, out, h=hidden: h.append(out))
            first = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[1]
            hook.remove()
            torch.testing.assert_close(states[0], first[0].mean(0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(states[1], hidden[0][0].mean(0), atol=1e-5, rtol=1e-5)
    assert found.shape == (3, 2, 32) and (found[0] - found[1]).abs().max() > 0.01


def test_nothing_is_computed_after_the_layer(model):
    ran = []
    watched = {"first": decoder_layers(model)[0], "second": decoder_layers(model)[1], "norm": model.model.norm, "head": model.lm_head}
    hooks = [m.register_forward_pre_hook(lambda m, a, name=name: ran.append(name)) for name, m in watched.items()]
    mean_states(model, ROWS, [1])
    assert ran == ["first"]
    model(input_ids=torch.tensor([[1]]))  # and the model is as it was
    assert ran == ["first", "first", "second", "norm", "head"]
    for hook in hooks:
        hook.remove()


def made(model, names=("code", "math"), seed=0) -> Probe:
    torch.manual_seed(seed)
    return Probe(tuple(names), 1, torch.randn(len(names), 32), torch.randn(len(names)), layers_fingerprint(model, 1))


def test_a_probe_on_disk_decides_as_its_formula_says(model, tmp_path):
    probe = made(model, ("code", "law", "math"))
    save_probe(probe, tmp_path / "probe", {"seed": 0})
    kept = load_probe(tmp_path / "probe")
    assert torch.equal(kept.weight, probe.weight) and (kept.categories, kept.layer) == (("code", "law", "math"), 1)
    texts = ["What is 3 + 4?", "Write a loop." * 90, "x", ""]
    form = make_form("probe", Setup(model, tiny.tokenizer(), dict.fromkeys(("math", "code")), probe=tmp_path / "probe"))
    for size in (1, 4):
        found = form.decide(texts, size)
        for text, decision in zip(texts, found, strict=True):
            ids = list(text.encode())
            ids = ids if len(ids) <= 256 else [*ids[:64], *ids[-192:]]
            with torch.inference_mode():
                tokens = form._reader.tokens(text)
                assert len(tokens) == max(len(ids), 1) == decision.tokens_in
                x = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[1][0].mean(0)
            code, law, math = (probe.weight @ x + probe.bias).softmax(-1).tolist()
            assert decision.scores == pytest.approx({"code": code, "math": math, "others": law}, abs=1e-4)  # nobody serves law
            assert decision.category == max(decision.scores, key=decision.scores.get) and decision.tokens_out == 0


def test_a_probe_for_another_base_or_other_experts_is_refused(model, tmp_path):
    save_probe(made(model), tmp_path, {})
    with pytest.raises(AdapterError, match=r"chooses between code, math, not law\. .*t2 probe"):
        make_form("probe", Setup(model, tiny.tokenizer(), dict.fromkeys(("law", "math")), probe=tmp_path))
    with pytest.raises(AdapterError, match=r"this model's is .*t2 probe"):
        make_form("probe", Setup(tiny.model(seed=2), tiny.tokenizer(), {"math": None}, probe=tmp_path))
    wide = tiny.LlamaConfig(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=258)
    with pytest.raises(AdapterError, match="it has other sizes"):
        make_form("probe", Setup(tiny.AutoModelForCausalLM.from_config(wide), tiny.tokenizer(), {"math": None}, probe=tmp_path))


def test_damaged_files_are_named(model, tmp_path):
    def damage(name: str, content: bytes | None) -> str:
        save_probe(made(model), tmp_path, {})
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
        with pytest.raises(AdapterError, match="probe") as caught:
            load_probe(tmp_path)
        return str(caught.value)

    assert "probe.safetensors is missing" in damage("probe.safetensors", None) and "card.json is missing" in damage("card.json", None)
    assert "cannot be read as JSON" in damage("card.json", b'{"kind": "pro') and "not the card of a probe" in damage("card.json", b"{}")
    assert "changed or damaged" in damage("probe.safetensors", b"abc")
    broken = made(model)
    broken.weight[0, 0] = float("nan")
    save_probe(broken, tmp_path, {})
    with pytest.raises(AdapterError, match="not finite"):
        load_probe(tmp_path)


def test_the_folder_is_looked_at_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "labelled_prompts", lambda *_: [])
    monkeypatch.setattr(training, "_load", lambda *_: pytest.fail("it is being trained"))
    expert = tmp_path / "math"
    shutil.copytree(shipped()["math"], expert)
    card = (expert / "card.json").read_bytes()
    with pytest.raises(AdapterError, match=r"math is an expert's folder, whose card\.json .*: name another, .*/probe say"):
        training.train_probe(None, expert, {})
    assert (expert / "card.json").read_bytes() == card
    with pytest.raises(AdapterError, match="/proc/none cannot be written to"):
        training.train_probe(None, Path("/proc/none"), {})


def rows(dataset: str, n: int = 60) -> list[dict]:
    if dataset == "mbpp":
        return [
            {"text": f"Write f{i}.", "code": f"def f{i}(a, b):\n  return {i}", "test_list": [f"assert f{i}(1, 2) == {i}"] * 3}
            for i in range(n)
        ]
    if dataset == "gsm8k":
        return [{"question": f"{i} + {i} * 3 / {i} = ?", "answer": f"#### {i}"} for i in range(n)]
    if dataset == "math":
        return [{"problem": f"$\\frac{{{i}}}{{7}} + {i}$", "solution": "s", "answer": str(i)} for i in range(n)]
    options = {"text": ["rain", "the sea", "ice", "fire"], "label": ["A", "B", "C", "D"]}
    return [{"question": f"Which one is wet in case {i}?", "choices": options, "answerKey": "B"} for i in range(n)]


@pytest.fixture
def train_rows(monkeypatch):
    read = []

    def load(dataset, split):
        read.append((dataset, split))
        return rows(dataset)

    monkeypatch.setattr(probe_prompts, "load_rows", load)
    monkeypatch.setattr(training, "PER_CATEGORY", 48)
    return read


def test_prompts_come_from_train_splits_in_all_forms_and_halves_share_no_document(train_rows):
    found = list(probe_prompts.labelled_prompts(120, seed=3))
    assert sorted(train_rows) == [(d, "train") for d in ("arc_challenge", "arc_easy", "gsm8k", "math", "mbpp")]
    assert found == list(probe_prompts.labelled_prompts(120, seed=3)) != list(probe_prompts.labelled_prompts(120, seed=4))
    counts = {c: sum(category == c for category, *_ in found) for c in ("code", "math", "reasoning")}
    assert counts == {"code": 120, "math": 120, "reasoning": 120}
    places = [place for *_, place in found]
    held = training._validation(places, 0)
    assert not {p for p, v in zip(places, held, strict=True) if v} & {p for p, v in zip(places, held, strict=True) if not v}
    assert 0.4 < held.mean() < 0.6
    function = probe_prompts._function(rows("mbpp")[4])
    assert function == 'from typing import List\n\n\ndef f4(a, b):\n    """ Write f4.\n    >>> f4(1, 2)\n    4\n    """\n'


def test_the_forms_are_those_of_the_tasks():
    """What lm-eval's tasks make of a document, our forms do; drift in a task's prompt shows here."""
    yaml = pytest.importorskip("yaml")
    from lm_eval.utils import apply_template

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!function", lambda loader, suffix, node: None)
    tasks = Path(probe_prompts.__file__).parents[1] / "tasks"
    for file, form, dataset in (
        ("mbpp/mbpp", probe_prompts._mbpp, "mbpp"),
        ("mbpp/mbpp_instruct", probe_prompts._mbpp_instruct, "mbpp"),
        ("math/math_algebra", probe_prompts._math, "math"),
        ("arc/arc_challenge_chat", probe_prompts._options, "arc_challenge"),
        ("arc/arc_easy", probe_prompts.FORMS["reasoning"]["arc_easy"][1], "arc_easy"),
        ("gsm8k/gsm8k", probe_prompts.FORMS["math"]["gsm8k"][1], "gsm8k"),
    ):
        template = yaml.load((tasks / f"{file}.yaml").read_text(), Loader)["doc_to_text"]
        assert form(rows(dataset)[1]) == apply_template(template, rows(dataset)[1]), file


def test_the_command_trains_a_probe_that_works_and_finds_it_beside_the_experts(train_rows, tmp_path, capsys):
    from t2.harness.cli import main

    base = tiny.save(tmp_path / "base")
    (tmp_path / "law.txt").write_text("\n".join(f"Is contract {i} void under the statute?" for i in range(40)) + "\n\n")
    assert main(["probe", str(base), "-o", str(tmp_path / "probe"), "--prompts", f"law={tmp_path / 'law.txt'}"]) == 0
    card = json.loads((tmp_path / "probe" / "card.json").read_text())
    assert card["categories"] == ["code", "math", "reasoning", "law"] and card["validation"]["accuracy"] > 0.9
    assert card["data"]["train_prompts"] + card["data"]["validation_prompts"] == 3 * 48 + 40 and "validation" in capsys.readouterr().out
    form = make_form(
        "probe", Setup(tiny.model(), tiny.tokenizer(), dict.fromkeys(("code", "math", "reasoning", "law")), probe=tmp_path / "probe")
    )
    asked = ["Is contract 77 void under the statute?", "Question: Which one is wet in case 99?\nAnswer:", "99 + 99 * 3 / 99 = ?"]
    assert [d.category for d in form.decide(asked)] == ["law", "reasoning", "math"]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("law", "not of the form NAME=FILE"),
        ("law={}/none.txt", "cannot be read"),
        ("law={}/few.txt", "at least 20"),
        ("math={}/few.txt", "a category already"),
    ],
)
def test_prompt_files_can_be_wrong(train_rows, tmp_path, capsys, argument, says):
    from t2.harness.cli import main

    (tmp_path / "few.txt").write_text("one\ntwo\ntwo\n")
    assert main(["probe", "nowhere", "-o", str(tmp_path / "probe"), "--prompts", argument.format(tmp_path)]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "probe").exists()


def test_the_shipped_probe_is_for_the_shipped_experts():
    probe = load_probe(dispatch_probe.SHIPPED)
    card = json.loads((dispatch_probe.SHIPPED / "card.json").read_text())
    assert (
        probe.categories == ("code", "math", "reasoning")
        and card["data"]["split"].startswith("train")
        and card["validation"]["accuracy"] > 0.98
    )
    with pytest.raises(T2Error, match="cannot be loaded"):
        training._load(str(dispatch_probe.SHIPPED))
