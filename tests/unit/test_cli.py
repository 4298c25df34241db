"""The command `t2`: quick to start, one message for an error of the user's, no traceback."""

import dataclasses
import re
import subprocess
import sys

import pytest

from t2 import __version__
from t2.baselines.config import TrainConfig
from t2.harness import cli
from t2.harness.errors import T2Error


def run(*argv, **options):
    return subprocess.run([sys.executable, "-m", "t2.harness.cli", *argv], capture_output=True, text=True, timeout=60, **options)


def test_help_of_train_tells_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for setting in dataclasses.fields(TrainConfig):
        assert re.search(rf"^  (.*, )?{setting.name}[=:]", text, re.MULTILINE), setting.name
    assert "\n  name: " in text and "\n  model=null: " in text and "\n  lora_r=16, lora_alpha=32, lora_dropout=0.05: " in text


def test_help_lists_the_commands_and_imports_nothing_heavy():
    program = "import sys; from t2.harness.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for name in ("fetch", "doctor", "experts", "train", "score-code", "report"):
        assert f"  {name}" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "t2.harness.cli" in loaded
    assert not loaded & {"torch", "transformers", "lm_eval", "peft", "datasets", "tqdm", "numpy", "huggingface_hub"}


def test_version():
    assert run("--version").stdout == f"t2 {__version__}\n"


def test_unknown_command_suggests_the_nearest():
    done = run("fetsh")
    assert done.returncode == 2
    assert (
        done.stderr == "t2: Unknown command 'fetsh'. Did you mean 'fetch'? Known: adapt, curves, doctor, eval, experts, fetch, probe, "
        "regress, report, score-code, study, train.\n"
    )


def test_no_command_is_a_usage_error():
    done = run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


@pytest.mark.parametrize(("argv", "said"), [(["fetch", "gsm8"], "Did you mean 'gsm8k'"), (["fetch", "gsm8k/tset"], "Did you mean 'test'")])
def test_fetch_of_the_unknown_suggests_the_nearest(capsys, argv, said):
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err


def test_experts_check_of_nothing_and_unknown_name(capsys, tmp_path):
    assert cli.main(["experts", "check", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert cli.main(["experts", "show", "no-such-expert"]) == 2
    assert "Unknown expert 'no-such-expert'" in capsys.readouterr().err


def replace(monkeypatch, error):
    def fail(argv):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.Command("", fail))


def test_user_errors_are_messages_and_debug_shows_the_traceback(monkeypatch, capsys):
    from t2.adapters.errors import AdapterError

    monkeypatch.delenv("T2_TRACEBACK", raising=False)
    files = [OSError(28, "No space left on device"), PermissionError(13, "Permission denied", "/x"), OSError(36, "File name too long")]
    for error in (T2Error("what\nand why"), AdapterError("no such expert"), *files):
        replace(monkeypatch, error)
        assert cli.main(["doctor"]) == 2
        assert capsys.readouterr().err == f"t2: {error}\n"
    monkeypatch.setenv("T2_TRACEBACK", "1")
    replace(monkeypatch, T2Error("what"))
    assert cli.main(["doctor"]) == 2  # and not 1, which `t2 regress` keeps for regressions
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    replace(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["doctor"])


def test_ctrl_c_is_130(monkeypatch, capsys):
    replace(monkeypatch, KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_closed_pipe_is_silent(tmp_path):
    command = f"{sys.executable} -m t2.harness.cli doctor | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=None)
    assert "python" in done.stdout
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
