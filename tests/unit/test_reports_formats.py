"""Text from anywhere in the formats of a report: GitHub, and a browser, must show it as written."""

import html.parser

import pytest

from t2.reports import markdown, page
from t2.reports.arguments import parse_model_args, short_name
from t2.reports.blocks import Alert, Bullets, Details, Heading, Item, Paragraph, Picture, Table, code, figure, strong
from t2.reports.markdown import escape


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
            "base_url": "https://me:pw@host/v1?api-version=2&api-key=SECRET&subscription_key=B&deployment=keyless",
            "header": {"x": "sk-9"},
            "x-api-key": "sk-4",
            "client": [{"hub-token": "sk-5", "max_tokens": 5, "more": {"apiKey": "sk-6", "url": "https://me:pw@host?key=a", "n": 1}}],
        }
    )
    assert shown == {
        "api_key": "***",
        "token": "***",
        "max_tokens": "5",
        "add_bos_token": "True",
        "base_url": "https://***@host/v1?api-version=2&api-key=***&subscription_key=***&deployment=keyless",
        "header": "***",
        "x-api-key": "***",
        "client": '[{"hub-token": "***", "max_tokens": 5, "more": {"apiKey": "***", "n": 1, "url": "https://***@host?key=***"}}]',
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
    "1. one\n12) two",
    "12) two",
    "名前 é 🙂",
    "tail\\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py renders what GitHub would")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    source = markdown.render([Table(["Method", "Score"], [[text, "1"], ["after", "2"]])])
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


@pytest.mark.parametrize("text", ["# not a title", "- no list", "+ no list", "=", "1. one", "12)", "1.5"])
def test_a_line_of_a_list_opens_nothing(text):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py renders what GitHub would")
    tokens = markdown_it.MarkdownIt("commonmark").parse(markdown.render([Bullets([text])]))
    assert [token.type for token in tokens if token.type.endswith("_open")] == ["bullet_list_open", "list_item_open", "paragraph_open"]


def everything(text):
    """Every kind of block with `text` wherever text can be."""
    table = Table([text, text], [[text, strong(text)], [code(text), (text, figure(" [1, 2]"))]])
    return [
        Heading(text, 1), Paragraph((text, code(text), strong(text))), Bullets([text, Item(text, [text])]), table,
        Alert("WARNING", text, [text]), Picture("plot", text), Details(text, [table]),
    ]  # fmt: skip


class Elements(html.parser.HTMLParser):
    """Collects what a browser would make elements of."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


EVIL = [
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    '" onmouseover="document.title=1',
    "</title></table></details><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "<!-- --><iframe srcdoc='<script>1</script>'>",
    "&lt;script&gt;",
    "\x00<scr\x00ipt>",
    "\ud800 lone",
    *HOSTILE,
]


@pytest.mark.parametrize("text", EVIL)
def test_a_page_has_the_same_elements_whatever_the_text(text):
    pages = {}
    for name, content in (("plain", "plain"), ("evil", text)):
        pages[name] = Elements()
        pages[name].feed(page.render(everything(content), {"plot": b"<svg/>"}))
    assert pages["evil"].tags == pages["plain"].tags
    assert [a for a, _ in pages["evil"].attributes] == [a for a, _ in pages["plain"].attributes]
    shown = " ".join(text.replace("\x00", " ").encode("utf-8", "replace").decode().split())
    assert shown in " ".join("".join(pages["evil"].text).split())


def test_a_page_needs_nothing_from_elsewhere():
    text = page.render(everything("x"), {"plot": b"<svg/>"})
    elements = Elements()
    elements.feed(text)
    links = [value for name, value in elements.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert links and all(value.startswith("data:") for value in links)
    assert "link" not in elements.tags and "@import" not in text and "url(" not in text


@pytest.mark.parametrize("text", EVIL)
def test_markdown_keeps_its_structure_whatever_the_text(text):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py renders what GitHub would")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])

    def structure(content):
        tokens = parser.parse(markdown.render(everything(content)))
        return [token.type for token in tokens], [token.content for token in tokens if token.type == "html_block"]

    plain, evil = structure("plain"), structure(text)
    assert evil[0] == plain[0]
    assert not any("<script" in block or "<img" in block or "<svg" in block for block in evil[1])
