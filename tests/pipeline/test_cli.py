"""The program itself: mistakes in what is given end with one line and status 2, for every option of every command."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import typer

from pipeline import cli

COMMANDS = typer.main.get_command(cli.app)
assert isinstance(COMMANDS, click.Group) or hasattr(COMMANDS, "commands")
WITH_VALUE = [
    (name, option)
    for name, command in COMMANDS.commands.items()
    for parameter in command.params
    if parameter.param_type_name == "option" and not parameter.is_flag
    for option in parameter.opts
]


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["wordmill", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def test_every_command_has_options_with_values() -> None:
    assert {name for name, _ in WITH_VALUE} >= {"use", "run", "server", "agent", "ui", "serve", "generate", "reproduce"}


@pytest.mark.parametrize(("name", "option"), WITH_VALUE, ids=lambda value: str(value))
def test_an_option_without_its_value(
    name: str, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, line = run(capsys, monkeypatch, name, option)
    assert status == 2
    assert line == f"wordmill: Option '{option}' requires an argument; `wordmill {name} --help`\n"


@pytest.mark.parametrize("name", COMMANDS.commands)
def test_an_unknown_option(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, line = run(capsys, monkeypatch, name, "--no-such-option")
    assert status == 2
    assert line.startswith("wordmill: No such option")
    assert line.endswith(f"`wordmill {name} --help`\n")
    assert line.count("\n") == 1


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-option"], ["--"]])
def test_what_is_no_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, line = run(capsys, monkeypatch, *arguments)
    assert status == 2
    assert line.startswith("wordmill: ")
    assert line.count("\n") == 1


def test_prefects_own_server_has_time_to_make_its_database(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it has 20 seconds; on a slow machine the first `wordmill run` ended with a traceback."""
    name = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
    given: dict[str, str] = {}

    def rebuild(**parameters: Any) -> SimpleNamespace:
        given.update(os.environ)
        return SimpleNamespace(message="stages: 4 cached", is_completed=lambda: True)

    monkeypatch.setattr(os, "environ", {**os.environ, "PATH": os.environ["PATH"]})
    os.environ.pop(name, None)
    monkeypatch.setitem(sys.modules, "pipeline.flow", SimpleNamespace(rebuild=rebuild))
    assert not run(capsys, monkeypatch, "run")[0]
    assert float(given[name]) >= 120
    os.environ[name] = "7"
    run(capsys, monkeypatch, "run")
    assert given[name] == "7"  # what the user has set stays
