"""Answer checking: extraction, equality, agreement with lm-eval's own code, and hostile replies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from t2.tasks import math_verifier
from t2.tasks.answers import arc_letter, extract_math, extract_number, gsm8k_correct, math_correct
from t2.tasks.math_answers import last_box, plain_form
from t2.tasks.math_verifier import VerifierError, same_value

REPLIES = [
    "",
    "I do not know.",
    "She has 3 apples and buys 4.\n#### 7",
    "It costs $1,250.",
    "The answer is 18.",
    "The answer is $18.00",
    "So -5 degrees",
    "1,000,000 people",
    "Well... 7 ...",
    "...",
    "$",
    "no. 12, then 13,",
    "#### 7.5\n#### 8",
    "\uff17 apples",
    "3/4",
]


def lm_eval_flexible(reply: str, answer: str) -> float:
    """lm-eval's own gsm8k, filter flexible-extract, as its YAML configures it."""
    [[prediction]] = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1).apply([[reply]], [{}])
    return exact_match_hf_evaluate(
        predictions=[prediction], references=[answer], ignore_case=True, regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"]
    )["exact_match"]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("answer", ["3+4=<<3+4=7>>7\n#### 7", "#### 1250", "#### 18", "#### -5", "x\n#### 1,000,000", "#### 13", "#### 8"])
def test_gsm8k_reward_is_lm_evals_flexible_extract(reply: str, answer: str) -> None:
    assert gsm8k_correct(reply, answer) == bool(lm_eval_flexible(reply, answer))


def test_gsm8k_right_and_wrong() -> None:
    assert gsm8k_correct("so 7 apples", "#### 7")
    assert gsm8k_correct("It costs $1,250.", "#### 1250")
    assert not gsm8k_correct("so 70 apples", "#### 7")
    assert not gsm8k_correct("", "#### 7")


@pytest.mark.parametrize(
    ("text", "number"),
    [("It costs $1,250.", "1250"), ("", None), ("none", None), ("...", None), ("$", None), ("[invalid]", None), ("3 then -4", "-4")],
)
def test_extract_number(text: str, number: str | None) -> None:
    assert extract_number(text) == number


@pytest.mark.parametrize(
    "reply", ["A", " a", "(B).", "[c]", "D\n", "E", "F", "", "A B", "B, because", "The best answer is B", "1", "**d**"]
)
def test_arc_letter_is_lm_evals_exact_match(reply: str) -> None:
    matches = {
        letter
        for letter in "ABCDE"
        if exact_match_hf_evaluate(predictions=[reply.strip()], references=[letter], ignore_case=True, ignore_punctuation=True)[
            "exact_match"
        ]
    }
    assert matches == ({arc_letter(reply)} if arc_letter(reply) else set())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # the last complete box wins over all else
        (r"First \boxed{4}, no: \boxed{\frac{1}{2}}. The answer is 9.", r"\frac{1}{2}"),
        (r"\boxed{5} and then \boxed{\frac{1", "5"),
        (r"\boxed{\boxed{2}}", "2"),
        (r"I put it in \boxed{}. The answer is 7.", "7"),
        (r"so $\boxed 8$.", "8"),
        # then what is stated
        ("The answer is 3. No: the final answer is $\\frac{3}{4}$. I hope it is correct. The answer is 5.", r"\frac{3}{4}"),
        ("**Final answer:** 42", "42"),
        ("The final answer is:\n\\[ x = 3 \\]", "x = 3"),
        ("The answer is 12 square units.", "12"),
        ("So the answer is Tuesday.", "Tuesday"),
        ("the answer is 2\\sqrt{3}.", r"2\sqrt{3}"),
        ("The answer is (3, 4).", "(3, 4)"),
        ("The answer is 3qr + 6q - 30", "3qr + 6q - 30"),
        ("The answer is 1,\\! 250.", "1,\\! 250"),
        ("The answer is \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}.", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("Final answer: -5", "-5"),
        ("Final Answer\n\n$42$", "42"),
        ("To get the final answer we add 3 and 4. The answer is 7.", "7"),
        ("This is the final answer.\nIs it right? The answer is 7.", "7"),
        ("The answer is 10 - 3 = 7 apples.", "7"),
        ("The answer is x^2 + 3 units.", "x^2 + 3 units"),
        ("The answer is: there are 6 ways.", "6"),
        ("The answer is $5 per hour, so for 8 hours he gets $40.", "5"),
        ("We add 2 and 3.\n#### 1,234", "1,234"),
        ("The answer is 90$^\\circ$.", "90"),
        ("The answer is **5** $\\text{cm}$.", "5"),
        ("The answer is 5 when $x = 2$.", "5"),
        ("The answer is 10 - 3 = $7$.", "7"),
        # not what is said about an answer, unless there is nothing else
        ("The answer is 7.\nSo our answer is correct.", "7"),
        ("The final answer is $7$.\n\nThis shows the final answer is correct.", "7"),
        ("The answer is 7.\n\nNote: the answer is rounded to the nearest integer.", "7"),
        ("Answer: 7\n\nExplanation: the answer is found by adding 3 and 4.", "7"),
        ("the answer is $\\frac12$.\nThis answer is not in simplest form?", "\\frac12"),
        ("The answer is in the form 3, so 3.", "3"),
        ("It is a right angle. The answer is right.", "right"),
        ("The answer is right triangle.", "right triangle"),
        # then the last formula or number
        ("there are $5$ apples and 10 pears.", "10"),
        ("10 apples, so $x^2 = 4$ and $x = \\pm 2$.", r"x = \pm 2"),
        ("that is 3.5 + 2 = 5.5.", "5.5"),
        ("so 20%", "20%"),
        ("it is 3/4", "3/4"),
        # nothing
        ("", None),
        ("   \n", None),
        ("I cannot tell.", None),
        (r"\boxed{}", None),
        ("$$", None),
        ("so 2\\sqrt{3}", None),  # a formula without its dollars: rather nothing than its 3
    ],
)
def test_extract_math(text: str, answer: str | None) -> None:
    assert extract_math(text) == answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac12", r"\dfrac{1}{2}"),
        ("1000", "1,000"),
        (r"11,\! 111", "11111"),
        (r"\frac{12}{5,\!525}", r"\frac{12}{5525}"),
        (r"\text{Tuesday}", "tuesday"),
        (r"90^\circ", "90"),
        (r"5\text{ cm}", "5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("x^2+1", "1+x^2"),
        (r"6\sqrt3", r"6\sqrt{3}"),
        (r"\frac{7}{5} + \frac{1}{5} i.", r"\frac{7+i}{5}"),
        ("5", "x = 5"),
        ("0", "x = 0"),
        ("0", "f(2) = 0"),
        ("0", "3 - 3 = 0"),
        ("0", r"\cos 90^\circ = 0"),
        ("0", "f(6) - f(4) = 0"),
        ("0", r"P(A \cap B) = 0"),
        ("0", "a^2 + bc = 0"),
        ("17", "m + n = 17"),
        ("25_6", "25"),
        ("12", "12_{10}"),
        (r"1:30\text{ p.m.}", "1:30"),
        (r"(1,2),(3,4)", r"\{(1,2),(3,4)\}"),
        (r"\$18.90", "18.9"),
        ("1,-3", "-3, 1"),
    ],
)
def test_equal_answers(gold: str, answer: str) -> None:
    assert same_value(gold, answer)
    assert math_correct(rf"Thus \boxed{{{answer}}}.", gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1", "-1"),
        ("(1,2)", "(2,1)"),
        ("[0,1]", "(0,1)"),
        ("4210_{5}", "4210_{7}"),
        ("12", "12_7"),
        ("25_6", "25_{10}"),
        ("(1,2)", r"\{1,2\}"),
        (r"\left\{1, 2\right\}", "(1, 2)"),
        (r"9\text{ a.m.}", r"9\text{ p.m.}"),
        ("3", "3 or 4"),
        ("3", "3, 4, 5"),
        (r"\text{even}", r"\text{odd}"),
        (r"\pi", "3.14"),
        (r"\frac13", "0.33"),
        ("12", "1 2, 13"),
        (r"\infty", r"-\infty"),
        ("", ""),
        ("", "5"),
        ("0", "20x + 23y + 26z - 69 = 0"),
        ("0", "x^2 - 4 = 0"),
        ("0", r"\frac{x}{2} = 0"),
        ("5", "\\"),
        ("5", "$"),
        ("5", "}{"),
        ("2", "x" * 5000),
    ],
)
def test_different_answers(gold: str, answer: str) -> None:
    assert not same_value(gold, answer)


def test_empty_reply_is_neither_extracted_nor_right() -> None:
    assert extract_math("") is None
    assert not math_correct("", "5")
    assert not math_correct("", "")


def test_a_tower_of_powers_ends_and_the_next_question_is_answered() -> None:
    start = time.monotonic()
    assert not same_value("1", "9^{9^{9^{9}}}")
    assert time.monotonic() - start < math_verifier.WALL_SECONDS + 30
    assert same_value("2", "1+1")


def test_a_killed_worker_is_replaced() -> None:
    assert same_value("7", "3+4")
    process = math_verifier._worker.process
    assert process is not None
    process.kill()
    process.wait()
    assert same_value("9", "4+5")


def _asked(gold: str, answer: str, then: Callable[[subprocess.Popen[str]], object]) -> bool:
    """Ask while the worker stands still, and do something to it meanwhile."""
    assert math_verifier._worker.ask("21", "10+11")
    process = math_verifier._worker.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(same_value, gold, answer)
        time.sleep(0.2)
        then(process)
        return verdict.result()


def test_a_worker_killed_while_asked_is_asked_again() -> None:
    assert _asked("23", "11+12", lambda process: process.kill())


def test_a_worker_killed_twice_is_an_error_not_a_zero(tmp_path, monkeypatch) -> None:
    (tmp_path / "math_verify.py").write_text(
        "import os, signal\ndef parse(text, **_): return text\n"
        "def verify(gold, answer, **_): return '25' not in gold or os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(math_verifier, "_worker", math_verifier._Worker())
    for _ in range(2):  # and nothing of it is kept
        with pytest.raises(VerifierError, match=r"ended twice \(exit status -9\) while it compared '12\+13' with '25'"):
            same_value("25", "12+13")


@pytest.mark.parametrize(("gold", "answer", "signals"), [("27", "13+14", [signal.SIGPROF, signal.SIGCONT]), ("29", "14+15", [])])
def test_what_could_not_be_decided_counts_as_different_and_is_not_kept(gold: str, answer: str, signals: list[int], monkeypatch) -> None:
    monkeypatch.setattr(math_verifier, "WALL_SECONDS", 60 if signals else 5)
    assert not _asked(gold, answer, lambda process: [process.send_signal(number) for number in signals])
    assert same_value(gold, answer)


def test_works_in_threads() -> None:
    assert threading.current_thread() is threading.main_thread()
    pairs = [(str(n), f"{n - 1}+{1 + n % 2}") for n in range(2, 42)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda pair: same_value(*pair), pairs))
    assert verdicts == [n % 2 == 0 for n in range(2, 42)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_does_not_mix_up_answers() -> None:
    assert same_value("11", "5+6")
    process = math_verifier._worker.process
    child = os.fork()
    if child == 0:
        os._exit(0 if same_value("13", "6+7") and math_verifier._worker.process is not process else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert math_verifier._worker.process is process
    assert same_value("15", "7+8")


def test_missing_math_verify_is_an_error_not_a_zero(tmp_path, monkeypatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('antlr is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(math_verifier, "_worker", math_verifier._Worker())
    with pytest.raises(VerifierError, match="antlr is missing"):
        same_value("17", "8+9")


def test_python_that_does_not_start_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(math_verifier, "_worker", math_verifier._Worker())
    with pytest.raises(VerifierError, match="does not start"):
        same_value("19", "9+10")


def test_long_hostile_replies_are_quick() -> None:
    start = time.monotonic()
    for text in ["\\boxed{" * 20000, "$" * 20001, "\\[" * 5000, "1," * 20000, "answer is " * 5000, "{" * 50000, "9" * 50000]:
        extract_math(text)
        extract_number(text)
    assert time.monotonic() - start < 20


def test_plain_form_and_last_box() -> None:
    assert plain_form(r"\left( \dfrac{1}{2},\, 3 \right)") == r"(\frac{1}{2},3)"
    assert plain_form("1,234.50") == "1234.50"
    assert plain_form(r"\text{ Even }") == "even"
    assert plain_form("a") != plain_form("A")
    assert last_box(r"x \fbox{3}") == "3"
    assert last_box("nothing") is None
