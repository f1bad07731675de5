"""What is shown and what is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.console import Console, _ToLog
from provision.errors import ProvisionError
from provision.redact import redact, register


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    root = logging.getLogger()
    before = list(root.handlers)
    # commands that other tests ran in this process have had consoles of their own
    root.handlers[:] = [handler for handler in before if not isinstance(handler, _ToLog)]
    yield Console(tmp_path / "logs")
    root.handlers[:] = before


def test_registered_secrets_are_masked_everywhere(console: Console, capsys, tmp_path: Path):
    register("s3cr3t-canary")
    console.say("password s3cr3t-canary")
    console.data("s3cr3t-canary")
    console.emit({"password": "s3cr3t-canary"})
    console.table(["key"], [["s3cr3t-canary"]])
    with pytest.raises(SystemExit):
        console.fail(ProvisionError("It says s3cr3t-canary.", details="s3cr3t-canary"))
    shown = "".join(capsys.readouterr())
    logged = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "***" in shown
    assert "s3cr3t-canary" not in shown + logged
    assert redact("a s3cr3t-canary b") == "a *** b"


def test_a_stage_is_one_plain_line_without_a_terminal(console: Console, capsys):
    with console.stage("making a thing") as stage:
        stage.note("half way")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("  done    making a thing  (")
    assert err.count("\n") == 1


def test_a_failed_stage_says_so(console: Console, capsys):
    with pytest.raises(ProvisionError), console.stage("making a thing"):
        raise ProvisionError("It broke.")
    assert "FAILED  making a thing" in capsys.readouterr().err


def test_an_error_shows_message_remedy_details_and_log_but_no_traceback(console: Console, capsys, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        console.fail(ProvisionError("It broke.", "Mend it.", details="line 1\nline 2"))
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "provision: It broke. Mend it." in err
    assert "    | line 2" in err
    assert "Traceback" not in err
    assert str(tmp_path / "logs") in err


def test_a_table_without_a_terminal_is_aligned_text(console: Console, capsys):
    console.table(["name", "state"], [["long-name", "ready"], ["x", "bare"]])
    assert capsys.readouterr().out == "name       state\nlong-name  ready\nx          bare\n"


def test_json_goes_to_standard_output_alone(console: Console, capsys):
    console.emit([{"name": "p"}])
    out, err = capsys.readouterr()
    assert json.loads(out) == [{"name": "p"}]
    assert err == ""


def test_without_a_terminal_nobody_has_agreed(console: Console, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert console.confirm("Really?") is False


def test_warnings_of_the_toolkit_are_shown_and_those_of_libraries_are_kept(console: Console, capsys, tmp_path: Path):
    logging.getLogger("provision").warning("The cloud answered %s.", 503)
    logging.getLogger("urllib3").warning("a pool is full")
    assert capsys.readouterr().err.splitlines() == ["  The cloud answered 503."]
    [log] = (tmp_path / "logs").iterdir()
    assert "a pool is full" in log.read_text()
