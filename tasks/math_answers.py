r"""Where the answer of a MATH reply stands, and its plain form for comparison as text.

Small models never write ``\boxed{}`` even when asked, so `extract_math` takes, in this order: the last complete box, what follows
"final answer is", what follows "answer is", what follows ``####``, and else the last formula or number, whichever ends later. What is
only said about an answer ("the answer is correct") counts where there is nothing else.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s$\\{}]+)")
_STATED = [
    re.compile(
        r"""final\s+answer [^\w.\n]{0,4}? (?:is\b|[:=]|\n\s*(?=\$|\\\[)) [\s*:=]*
            (?P<rest>[^\n]+(?:\n\s*\\\[[^\n]+|\n\s*\$[^\n]+)?)""",
        re.I | re.X,
    ),
    re.compile(r"\banswer\s*(?:is\b|:|=)(?:\s*:)?\s*(?P<rest>[^\n]+)", re.I),
    re.compile(r"####\s*(?P<rest>[^\n]+)"),
]
# A dollar with a digit behind it closes no formula: "$5 an hour, so for 8 hours $40".
_FORMULA = re.compile(
    r"""\$\$(.+?)\$\$ | (?<!\\)\$((?:[^$]|(?<=\\)\$)+)(?<!\\)\$(?!\d) | \\\((.+?)\\\) | \\\[(.+?)\\\]
      | (\\begin\{[pbvBV]?matrix\}.+?\\end\{[pbvBV]?matrix\})""",
    re.S | re.X,
)
# A number, fraction or percentage, but not the 3 of \sqrt{3} or x^3 that stands without dollar signs.
_NUMBER = re.compile(
    r"""(?<![\w.{^_]) [-+]? (?:\d{1,3}(?:,\d{3})+|\d+) (?![\d}]) (?:\.\d+)? (?:\s*/\s*\d+(?!\.\d))? (?:\s*\\?%)?
        (?!\w | \s*(?:\\[a-zA-Z]|\^))""",
    re.X,
)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=\s|$)|\s*I hope it is correct|\s*(?:because|since)\b", re.I)
_WORDS = re.compile(r"(?<![A-Za-z0-9\\])(?!sqrt\b|pi\b|sin\b|cos\b|tan\b|log\b|ln\b|or\b|and\b|infty\b)[A-Za-z]{2,}")
_WORDS_ONLY = re.compile(r"(?:[A-Za-z\s,($]|\\\$)*")
# "So our answer is correct.", "the answer is found by adding": about the answer, not the answer.
_REMARK = re.compile(
    r"""[\s*]*(?: (?:not|in|to|given|found|obtained|rounded|valid)\b
                | (?:(?:in)?correct|right|wrong) (?= \W*$ | \W+(?:because|as|since|by)\b) )""",
    re.I | re.X,
)
_LEAD_IN = re.compile(r"^(?:simply|just|approximately|about|equal to|exactly|therefore|then|the|a|an|:|\*)+\s+", re.I)


def _balanced(text: str, start: int) -> str | None:
    """Return what stands in the braces that open at `start`, or None if they never close."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start + 1 : i]
    return None


def last_box(text: str) -> str | None:
    r"""Return the content of the last complete, non-empty ``\boxed{}`` or ``\fbox{}``; of a nested box the inner one. None without one."""
    for match in reversed(list(_BOX.finditer(text))[-50:]):  # a reply that repeats itself has no better one before those
        inner = _balanced(text, match.end())
        if inner is not None and inner.strip():
            return inner.strip()
    bare = _BARE_BOX.findall(text)
    return bare[-1].rstrip(".,") or None if bare else None


def _tidy(answer: str) -> str | None:
    """Drop what surrounds an answer in running text: markdown stars, full stops, dollar signs; None if nothing is left."""
    answer = answer.strip().strip("*`").strip()
    answer = re.sub(r"(?<!\\)[.,;:!]+$", "", answer).strip().strip("*").strip()
    return answer if re.search(r"\w|\\[a-z]+", answer) else None


def _formulas(text: str) -> list[re.Match[str]]:
    return [m for m in _FORMULA.finditer(text) if _tidy(next(g for g in m.groups() if g is not None))]


def _inside(match: re.Match[str]) -> str | None:
    return _tidy(next(group for group in match.groups() if group is not None))


def _stated(rest: str) -> str | None:
    """Return the answer at the start of what follows "answer is": its first formula, a bare expression, a number, or a short phrase."""
    formulas = _formulas(rest)
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0]
    if formulas and (formulas[0].start() <= len(sentence)):
        before = _LEAD_IN.sub("", rest[: formulas[0].start()].lstrip("*:= "))
        number = _NUMBER.match(before)  # "5 $\text{cm}$", "5 when $x = 2$", but not "10 - 3 = $7$"
        return _tidy(number.group()) if number and "=" not in before else _inside(formulas[0])
    phrase = _tidy(_LEAD_IN.sub("", sentence.strip().lstrip("*:= ")))
    if phrase is None:
        return None
    if _WORDS.search(re.sub(r"\\(?:text|mbox|mathrm)\s*\{[^}]*\}", "", phrase)):
        phrase = _tidy(phrase.rpartition("=")[2]) or phrase  # "10 - 3 = 7 apples"
        number = _NUMBER.search(phrase)  # "12 square units", "there are 6", but not "x^2 + 3 units"
        return _tidy(number.group()) if number and _WORDS_ONLY.fullmatch(phrase, 0, number.start()) else phrase
    return phrase


def extract_math(text: str) -> str | None:
    """Return the answer of a reply as LaTeX or plain text; None if there is none (an empty reply, or words only)."""
    boxed = last_box(text)
    if boxed is not None:
        return boxed
    remark = None
    for pattern in _STATED:
        for match in reversed(list(pattern.finditer(text))):
            answer = _stated(match["rest"])
            if answer is not None and not _REMARK.match(match["rest"]):
                return answer
            remark = remark or answer
    formulas, numbers = _formulas(text), list(_NUMBER.finditer(text))
    if formulas and (not numbers or formulas[-1].end() >= numbers[-1].end()):
        return _inside(formulas[-1])
    return _tidy(numbers[-1].group()) if numbers else remark


THOUSANDS = re.compile(r"(?<=\d)(?:,\s*\\!\s*|\{,\}\s*)(?=\d{3})")

_SYNONYMS = [
    (r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\displaystyle", ""),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\(?:text|mbox|mathrm|textbf|mathbf|textit)\s*\{([^{}]*)\}", r"\1"),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", ""),
    (r"\\[!,;:> ]|~|\\quad", ""),
    (r"\\?%|\\?\$", lambda m: "%" if "%" in m.group() else ""),
    (r"\s+", ""),
]


def plain_form(answer: str) -> str:
    """Return an answer without its typesetting (spaces, sizes, thousands commas, degree signs): equal text then means equal answers."""
    answer = THOUSANDS.sub("", answer)
    for pattern, replacement in _SYNONYMS:
        answer = re.sub(pattern, replacement, answer)
    answer = answer.rstrip(".")
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", answer):
        answer = answer.replace(",", "")
    return answer.casefold() if re.fullmatch(r"[A-Za-z]{2,}", answer) else answer
