"""Hostile names and model outputs in a real browser: none of their scripts may run, and the page's own must.

Skipped where there is no Chromium (Debian and Ubuntu: package chromium).
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from t2.reports import page as report_page
from t2.reports.blocks import Table, figure
from t2.reports.cli import main

from ..result_files import acc, log, result, sample, share, t2_section, write

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium: apt-get install chromium")

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
)  # fmt: skip

ACT = "document.title='pwned'"
EVIL = [
    f"</script><script>{ACT}</script>",
    f'<img src=x onerror="{ACT}">',
    f'"><svg/onload="{ACT}">',
    f"</title></style></table></details><script>{ACT}</script>",
    f"<iframe srcdoc='<script>parent.{ACT}</script>'></iframe>",
    f'" autofocus onfocus="{ACT}" x="',
    f"<!--><script>{ACT}</script>-->",
    f"<style>@import 'data:text/css,'</style><body onload={ACT}>",
]


def dom(page: Path, profile: Path) -> str:
    """Return the page as the browser has it after its scripts ran."""
    command = [str(BROWSER), *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A report of runs with scripts wherever a result file or its samples have text."""
    monkeypatch.chdir(tmp_path)
    everywhere = "".join(EVIL)
    for i, text in enumerate(EVIL):
        task = f"arc_{text}"
        args = {"pretrained": text, "peft": text, text: text}
        t2 = t2_section(
            f"mix:{text}=0.5+b=0.5", dispatch=text, experts={text: text}, parameters={text: 10, "b": 5}, base=text, sandbox=text
        )
        t2["passes"] = {task: {"pass1": {"seconds": 1}, "pass2": {"seconds": 2}, "chosen": {text: 3}}, "arc": {}}
        t2["contaminated"] = {text: [text]}
        data = result(acc(10 + i, 20) | {task: {f"acc_{text},{text}": share(5, 10)}}, model="t2" if i % 2 else text, args=args, t2=t2)
        for name in ("lm_eval_version", "transformers_version", "pretty_env_info", "git_hash", "chat_template_sha", "system_instruction"):
            data[name] = f"PyTorch version: {everywhere}" if name == "pretty_env_info" else everywhere
        data["config"] |= {"gen_kwargs": {text: text}, "device": text, "limit": None, "model_dtype": text}
        data["configs"]["arc"] |= {"metadata": {"t2_domain": text}, "doc_to_text": text}
        data["versions"]["arc"] = text
        path = write(f"runs/{i}/results_1.json", data)
        facts = {"mixture": text, "category": text}
        log(path, "arc", [sample(doc, t2=facts, acc=float(doc < 10 + i)) | {"resps": [[text]], "target": text} for doc in range(20)])
    write("runs/<b>x/curve.jsonl", '{"event": "validation", "step": 0, "accuracy": 0.5}\n')
    assert main(["runs", "-o", "out", "--paper", "llama3-8b"]) == 0
    return tmp_path


def test_no_script_of_a_run_acts_in_a_browser(hostile):
    page = hostile / "out" / "report.html"
    text = page.read_text(encoding="utf-8")
    policy = text[text.index("<meta http-equiv") : text.index(">", text.index("<meta http-equiv")) + 1]
    shown = dom(page, hostile / "profile")
    assert "<title>Evaluation report</title>" in shown
    assert "pwned" in shown, "the names are shown"
    # Escaping alone must do it: without the page's content security policy nothing may run either.
    bare = hostile / "bare.html"
    bare.write_text(text.replace(policy, ""), encoding="utf-8")
    assert "<title>Evaluation report</title>" in dom(bare, hostile / "profile")


def test_the_browser_would_notice(hostile):
    """The same browser runs such a script where it is not escaped, so the test above can fail."""
    raw = hostile / "raw.html"
    for text in EVIL[:2]:
        raw.write_text(f"<!doctype html><title>Evaluation report</title><p>{text}</p></html>", encoding="utf-8")
        assert "<title>pwned</title>" in dom(raw, hostile / "profile")


def test_a_click_sorts_the_table_under_the_policy(tmp_path, monkeypatch):
    """The page's own script is the one that its policy lets run. Copies without the policy click."""
    monkeypatch.chdir(tmp_path)
    for name, right in (("a", 5), ("b", 20), ("c", 10)):
        write(f"runs/{name}/results_1.json", result(acc(right, 100), args={"pretrained": name}))
    write("runs/d/results_1.json", result({"other": {"acc,none": share(1, 2)}}, args={"pretrained": "d"}))
    main(["runs", "-o", "out.html"])
    text = Path("out.html").read_text(encoding="utf-8")
    policy = text[text.index("<meta http-equiv") : text.index(">", text.index("<meta http-equiv")) + 1]
    click = "<script>const b = document.querySelectorAll('th button')[1]; b.click();{}</script></body>"
    column = []
    for name, more in (("once", ""), ("twice", "b.click();")):
        page = Path(f"{name}.html")
        page.write_text(text.replace(policy, "").replace("</body>", click.format(more)), encoding="utf-8")
        shown = dom(page, tmp_path / "profile")
        body = shown.split("<tbody>")[1].split("</tbody>")[0]
        column.append([row.split("<td")[1].split(">")[1].split("<")[0] for row in body.split("<tr>")[1:]])
    assert column == [["hf b", "hf c", "hf a", "hf d"], ["hf a", "hf c", "hf b", "hf d"]]
    # Under the policy the script's hash must be right: a page whose script leaves a trace does, one that was changed later does not.
    probe = "\ndocument.body.dataset.ran = 'yes';"
    with monkeypatch.context() as patch:
        patch.setattr(report_page, "_SCRIPT", report_page._SCRIPT + probe)
        main(["runs", "-o", "own.html"])
    assert "data-ran" in dom(Path("own.html"), tmp_path / "profile")
    assert "data-ran" not in dom(_with(text, probe, tmp_path), tmp_path / "profile")


@pytest.mark.parametrize(
    "descending",
    [["+13.00 [+3.00, +20.00]", "+2.50 [+1.00, +4.00]", "0.00", "-1.00 [-2.00, +0.00]", "none"], ["0.9", "0.02", "5e-05", "1.2e-10"]],
)
def test_signs_and_exponents_are_sorted_by_value(tmp_path, descending):
    mixed = [descending[-1], *descending[:-1][::2], *descending[:-1][1::2]]
    text = report_page.render([Table(["Method", "Value"], [["row", figure(value)] for value in mixed])], {})
    policy = text[text.index("<meta http-equiv") : text.index(">", text.index("<meta http-equiv")) + 1]
    click = "<script>document.querySelectorAll('th button')[1].click();</script></body>"
    page = tmp_path / "page.html"
    page.write_text(text.replace(policy, "").replace("</body>", click), encoding="utf-8")
    body = dom(page, tmp_path / "profile").split("<tbody>")[1].split("</tbody>")[0]
    assert [row.split("<td")[2].split(">")[1].split("<")[0] for row in body.split("<tr>")[1:]] == descending


def _with(text: str, added: str, folder: Path) -> Path:
    page = folder / "changed.html"
    page.write_text(text.replace("</script>", f"{added}</script>"), encoding="utf-8")
    return page
