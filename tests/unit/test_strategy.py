"""Model arguments: every form reads as meant, nothing unknown passes, and the nearest name is suggested."""

from pathlib import Path

import pytest
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from t2.adapters.mixture import Mixture
from t2.harness.errors import T2Error
from t2.harness.strategy import (
    PASSED_ON,
    ModelArgumentError,
    check_model_args,
    check_names,
    parse_experts,
    parse_flag,
    parse_strategy,
)


@pytest.mark.parametrize(
    ("text", "kind", "mixture", "again"),
    [
        ("base", "fixed", Mixture.base(), "base"),
        ("prompt", "prompt", Mixture.base(), "prompt"),
        (" Prompt ", "prompt", Mixture.base(), "prompt"),
        ("cls", "cls", Mixture.base(), "cls"),
        ("expert:math", "fixed", Mixture.single("math"), "expert:math"),
        ("mix:base=0.5+math=0.5", "fixed", Mixture.of({"base": 0.5, "math": 0.5}), "mix:base=0.5+math=0.5"),
        ("mix:math=0.5+code=0.5", "fixed", Mixture.of({"code": 0.5, "math": 0.5}), "mix:code=0.5+math=0.5"),
        ("mix:math=0.5", "fixed", Mixture.of({"math": 0.5}), "mix:math=0.5"),
    ],
)
def test_strategies_are_read_and_written_back(text, kind, mixture, again):
    strategy = parse_strategy(text)
    assert (strategy.kind, strategy.mixture, str(strategy)) == (kind, mixture, again)
    assert parse_strategy(str(strategy)) == strategy
    assert strategy.is_base == (text == "base")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("promt", "Did you mean 'prompt'"),
        ("experts:math", "Did you mean 'expert'"),
        ("bas", "Did you mean 'base'"),
        ("xyz", "It is one of: base, expert:<name>, mix:"),
        ("base:math", "Did you mean 'base'"),
        ("expert", "is not of the form expert:<name>"),
        ("expert:", "is not of the form expert:<name>"),
        ("expert:a=1+b=2", "is not of the form expert:<name>"),
        ("mix:", "is not of the form mix:"),
        ("mix:math=half", "'half' is not a number"),
        ("mix:math=1+math=2", "twice"),
        ("mix:math=nan", "finite"),
        ("mix:math=0", "not 0"),
        (None, "Unknown strategy 'None'"),
        ("", "Unknown strategy ''"),
    ],
)
def test_bad_strategies_say_what_is_wrong(text, says):
    with pytest.raises(ModelArgumentError, match="strategy") as caught:
        parse_strategy(text)
    assert says in str(caught.value)
    assert isinstance(caught.value, T2Error) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("parse", [simple_parse_args_string, key_val_to_dict])
def test_mixtures_and_experts_survive_both_of_lm_evals_parsers(parse):
    args = parse("strategy=mix:math=0.5+code=0.5,experts=math=/a/b:/c,calibrate=false,dispatch=generate")
    assert args == {"strategy": "mix:math=0.5+code=0.5", "experts": "math=/a/b:/c", "calibrate": False, "dispatch": "generate"}
    assert str(parse_strategy(args["strategy"])) == "mix:code=0.5+math=0.5"


def test_every_unknown_argument_is_listed_with_its_nearest():
    with pytest.raises(ModelArgumentError) as caught:
        check_model_args(HFLM, ("strategy", "experts"), {"stratgy": "base", "dtypee": 1, "qqqq": 2, "device": "cpu"}, PASSED_ON)
    text = str(caught.value)
    assert "'stratgy' (did you mean 'strategy'?)" in text and "'dtypee' (did you mean 'dtype'?)" in text and "'qqqq'," not in text
    assert "arguments" in text and "'qqqq'." in text and "max_length" in text and "'device'" not in text


def test_what_hf_takes_and_hands_on_is_taken():
    given = {
        "dtype": "float32",
        "batch_size": 4,
        "max_length": 100,
        "revision": "main",
        "attn_implementation": "eager",
        "parallelize": True,
    }
    assert check_model_args(HFLM, ("strategy",), given, PASSED_ON) is None
    with pytest.raises(ModelArgumentError):
        check_model_args(HFLM, (), {"self": 1}, PASSED_ON)
    with pytest.raises(ModelArgumentError):
        check_model_args(HFLM, (), {"kwargs": 1}, PASSED_ON)


def expert(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_experts_by_folder_list_name_and_mapping(tmp_path):
    one, two = expert(tmp_path / "all" / "math"), expert(tmp_path / "all" / "law")
    assert parse_experts(None) is None
    both = {"math": one, "law": two}
    assert parse_experts(str(tmp_path / "all")) == both
    assert parse_experts(tmp_path / "all") == both
    assert parse_experts(f"{one}:{two}") == both
    assert parse_experts([str(one), two]) == both
    assert parse_experts(f"[{one}, {two}]") == both
    assert parse_experts(f"numbers={one}:{two}") == {"numbers": one, "law": two}
    assert parse_experts({"numbers": one}) == {"numbers": one}


def test_bad_experts_are_refused(tmp_path):
    one = expert(tmp_path / "all" / "math")
    expert(tmp_path / "all" / "law")
    for value, says in [
        (str(tmp_path / "nowhere"), "No expert in"),
        (f"x={tmp_path / 'all'}", "holds 2 experts"),
        (f"{one}:{tmp_path / 'all'}", "'math' is there twice"),
        ("", "names no folder"),
        ([], "names no folder"),
    ]:
        with pytest.raises(ModelArgumentError, match="experts=") as caught:
            parse_experts(value)
        assert says in str(caught.value)


def test_an_unknown_expert_is_told_before_any_model_is_loaded(tmp_path):
    with pytest.raises(ModelArgumentError, match=r"no expert 'maths'.*Did you mean 'math'"):
        check_names(parse_strategy("expert:maths"), {"math": tmp_path, "code": tmp_path})
    with pytest.raises(ModelArgumentError, match="Known: none"):
        check_names(parse_strategy("mix:a=1+b=2"), {})
    assert check_names(parse_strategy("prompt"), {}) is None


def test_flags():
    assert parse_flag("calibrate", "False") is False and parse_flag("calibrate", True) is True
    with pytest.raises(ModelArgumentError, match="calibrate=maybe must be true or false"):
        parse_flag("calibrate", "maybe")
