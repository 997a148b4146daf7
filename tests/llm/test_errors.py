"""Messages: whatever they quote, one line that a terminal shows and does not obey."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import LONGEST, ConfigError, TransientError, WordmillError, printable
from llm.progress import progress, say


@given(st.text(st.characters(), max_size=200))
def test_every_message_is_one_printable_line(text: str) -> None:
    for error in (WordmillError(text), ConfigError("key", text), TransientError(text)):
        line = str(error)
        assert len(line.splitlines()) <= 1
        line.encode()  # no lone surrogate, which printing would stumble over
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u200e\u202e\u2066\u2028\u061c" for c in line)


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("a\x1b[31mb\x9b2J\r\n\t\x7f") == "a\\x1b[31mb\\x9b2J\\r\\n\\t\\x7f"
    assert printable("moc\u202eelpmaxe \u2066x") == "moc\\u202eelpmaxe \\u2066x"
    assert printable("name\udcff") == "name\\udcff"
    assert printable("Größe 你好 🙂 a\xa0b") == "Größe 你好 🙂 a\xa0b"


@pytest.mark.parametrize(
    "address",
    [
        "https://me:secret@host/a.txt",
        "http://secret@host:80/a",
        "postgresql+psycopg://me:secret@db.example/mlflow",
        "https://me:s%40ecret@host/?x=1",
        "https://me:odd@secret@host/",
    ],
)
def test_messages_name_no_password(address: str) -> None:
    line = str(WordmillError(f"{address}: no answer; mail a@b.example"))
    assert "ecret" not in line
    assert "host" in line or "db.example" in line
    assert line.endswith("mail a@b.example")


def test_a_very_long_message_keeps_its_ends() -> None:
    line = str(WordmillError(f"a.json: no field (found: {'k' * 100_000}); set corpus.text_field"))
    assert len(line) <= LONGEST + 3
    assert line.startswith("a.json: no field")
    assert line.endswith("set corpus.text_field")


def test_progress_shows_no_escapes_of_foreign_names(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(unit="B", label="a\x1b]0;title\x07.txt") as bar:
        bar.note("b\u202e")
    say("c\x1b[2J")
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert "\u202e" not in printed
