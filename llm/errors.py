"""The errors a user can mend. Everything else is a bug and shows its traceback.

A `WordmillError` carries one line that says what is wrong, where, and what to do. Every entry point (stages,
`wordmill`, the Prefect flow) prints that line without a traceback and ends with exit status 2, or 75 for a
`TransientError`.

Messages quote what others wrote: names of files, keys of records, what a server answers. So every message goes through
`printable`: nothing in it can move a terminal's cursor, change its colours or turn its text around, and an address in
it shows no user name and no password.
"""

import re
import unicodedata

CREDENTIALS = re.compile(r"(?<=://)[^/\s?#@'\"]*(?:@[^/\s?#@'\"]*)*@")  # user:password@ of an address
LONGEST = 2_000  # characters of a message; the middle of a longer one is left out
UNPRINTABLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # Unicode categories


class WordmillError(Exception):
    """Wrong input, a missing file, an unusable machine: one line that says what, where, and what to do."""

    status = 2  # the exit status of a program that ends with it

    def __init__(self, message: object = "") -> None:
        super().__init__(_shortened(printable(str(message))))


class ConfigError(WordmillError, ValueError):
    """A setting outside its limits.

    Raised by the configuration dataclasses on construction. `field` is the bare field name; whoever reads the
    value from a file puts the file and the section in front of it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = printable(problem)


class TransientError(WordmillError):
    """Nothing is wrong with what was asked for, and the same again later may go well: the network, a busy server.

    Its exit status tells whoever runs a stage unattended to try again.
    """

    status = 75  # sysexits.h calls it EX_TEMPFAIL


def printable(text: str) -> str:
    """`text` as one line that is safe on a terminal.

    Control characters, line ends, bidirectional marks, other invisible characters and lone surrogates become escapes
    such as \\x1b and \\u202e. The user name and the password of an address become ***.
    """
    if "@" in text:
        text = CREDENTIALS.sub("***@", text)
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _shortened(message: str) -> str:
    """What is wrong stands at a message's beginning, what to do at its end."""
    if len(message) <= LONGEST:
        return message
    return f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in UNPRINTABLE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
