"""Intervals against scipy, and Markdown that GitHub must show as written."""

import math

import pytest
from scipy.stats import binomtest, norm

from t2.reports.arguments import parse_model_args, short_name
from t2.reports.markdown import escape, table
from t2.reports.statistics import Z95, interval95, is_share, mean, normal, overlap, wilson


@pytest.mark.parametrize("n", [1, 2, 9, 20, 164, 5000])
def test_wilson_equals_scipy(n):
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_quantile_is_the_normal_one():
    assert pytest.approx(norm.ppf(0.975), abs=1e-12) == Z95


def test_wilson_is_no_point_where_the_standard_error_is_zero():
    assert wilson(0.0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(1.0, 20)[1] == 1.0


@pytest.mark.parametrize(("p", "n"), [(0.5, 0), (1.1, 4), (-0.1, 4)])
def test_wilson_refuses_what_is_no_proportion(p, n):
    with pytest.raises(ValueError, match="needs n >= 1"):
        wilson(p, n)


def test_share_needs_a_whole_count():
    assert is_share(1 / 3, 9)
    assert is_share(0.1 + 0.2, 10)
    assert not is_share(0.5, 9)
    assert not is_share(0.5, None)
    assert not is_share(math.nan, 4)
    assert not is_share(2.0, 4)


def test_interval_kinds():
    assert interval95(0.25, None, 4, proportion=True) == wilson(0.25, 4)
    assert interval95(0.3, 0.1, 4, proportion=True) == normal(0.3, 0.1, 0, 1), "a mean of fractions is not binomial"
    assert interval95(0.01, 0.1, None, proportion=True)[0] == 0.0, "cut to what the metric can be"
    assert interval95(12.0, 1.0, 50, proportion=False) == (12 - Z95, 12 + Z95)


def test_interval_guards():
    assert interval95(7.0, 0.0, 1, proportion=False) is None, "one document has no spread"
    assert interval95(7.0, None, 50, proportion=False) is None
    assert interval95(math.nan, 0.1, 10, proportion=True) is None


def test_overlap_and_mean():
    assert overlap((0, 1), (1, 2))
    assert not overlap((0, 1), (1.1, 2))
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5


def test_arguments_in_both_forms():
    expected = {"pretrained": "a/b", "dtype": "float32", "strategy": "mix:math=0.5+code=0.5"}
    assert parse_model_args("pretrained=a/b,dtype=float32,strategy=mix:math=0.5+code=0.5") == expected
    assert parse_model_args(expected) == expected
    assert parse_model_args('{"a": 1}') == {"a": "1"}
    assert parse_model_args(None) == {} == parse_model_args("")


def test_secrets_are_struck_out():
    shown = parse_model_args(
        {
            "api_key": "sk-123",
            "token": "hf_abc",
            "max_tokens": 5,
            "add_bos_token": True,
            "base_url": "https://me:pw@host/v1",
            "header": {"x": "sk-9"},
        }
    )
    assert shown == {
        "api_key": "***",
        "token": "***",
        "max_tokens": "5",
        "add_bos_token": "True",
        "base_url": "https://***@host/v1",
        "header": "***",
    }
    assert parse_model_args("token=True") == {"token": "True"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("org/name", "name"),
        ("/x/hub/models--org--name/snapshots/abc", "name"),
        ("models/out/", "out"),
        ("C:\\models\\one", "one"),
        (".", "."),
    ],
)
def test_short_name(path, name):
    assert short_name(path) == name


HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "**bold** _it_ `code` ~~s~~",
    "[x](http://evil)",
    "![i](http://evil/i.png)",
    "http://evil.example www.evil.example",
    "&lt;b&gt;",
    "line\none\r\ntwo",
    "\\|",
    "1e5",
    "名前 é 🙂",
    "tail\\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py renders what GitHub would")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    source = table(["Method", "Score"], [[escape(text), "1"], ["after", "2"]])
    cells = [token for token in parser.parse(source) if token.type == "inline"]
    assert len(cells) == 6, source
    kinds = {child.type for child in cells[2].children}
    assert kinds <= {"text", "text_special"}, kinds
    assert "".join(child.content for child in cells[2].children) == " ".join(text.split())


def test_mentions_links_and_directions_do_not_act():
    shown = escape("@someone https://evil www.evil \u202egnp.exe \x1b[31m \ud800")
    assert "@" not in shown and "://" not in shown and "www." not in shown
    assert "\u202e" not in shown and "\x1b" not in shown
    assert shown.encode("utf-8")
    assert escape("math_algebra pass@1,none") == "math_algebra pass@1,none"
    assert "@" not in escape("a@1.com a@b @1 (@me")
