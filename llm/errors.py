"""The errors a user can mend. Everything else is a bug and shows its traceback.

A `WordmillError` carries one line that says what is wrong, where, and what to do. Every entry point (stages,
`wordmill`, the Prefect flow) prints that line without a traceback and ends with exit status 2, or 75 for a
`TransientError`.
"""


class WordmillError(Exception):
    """Wrong input, a missing file, an unusable machine: one line that says what, where, and what to do."""

    status = 2  # the exit status of a program that ends with it


class ConfigError(WordmillError, ValueError):
    """A setting outside its limits.

    Raised by the configuration dataclasses on construction. `field` is the bare field name; whoever reads the
    value from a file puts the file and the section in front of it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class TransientError(WordmillError):
    """Nothing is wrong with what was asked for, and the same again later may go well: the network, a busy server.

    Its exit status tells whoever runs a stage unattended to try again.
    """

    status = 75  # sysexits.h calls it EX_TEMPFAIL
