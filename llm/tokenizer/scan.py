"""Finding words with compiled code: where the next word of a text ends, for the patterns `gpt2` and `cl100k`.

A regular expression is what a pattern is defined by (`patterns.py`), and too slow for a large corpus: these two are
written out here as plain loops over UTF-8, compiled by numba, and tests hold them equal to the expressions. They need
one thing of each character, whether it is a letter, a number, white space or something else. That is asked of
tiktoken's own engine, once for each character that a text really has, so training and encoding can never disagree
about it, whatever version of Unicode either library has.

The compiled functions hold no lock of Python's, so threads run them side by side. numba keeps the machine code in
`__pycache__`; compiling it anew takes some seconds, once.
"""

from functools import cache

import numpy as np
import tiktoken
from numba import njit

from llm.tokenizer.bits import HIGH_BITS, eight_bytes
from llm.tokenizer.patterns import CL100K, GPT2

UNSEEN, LETTER, NUMBER, SPACE, NEWLINE, OTHER, END = range(7)  # NEWLINE: the white space \r and \n
SCANNED = {GPT2: 0, CL100K: 1}  # patterns that `word_end` knows, by its number for them
LONG_S = 0x17F  # ſ, which is an s where case is ignored


class Classes:
    """The class of every character met so far: `table` (0x110000,) uint8, UNSEEN for the others."""

    def __init__(self) -> None:
        self.table = np.zeros(0x110000, np.uint8)
        self.table[:128] = [_class(chr(code)) for code in range(128)]

    def learn(self, text: np.ndarray) -> None:
        """Make sure that every character of `text` (UTF-8) is in the table."""
        for code in unseen(text, self.table).tolist():
            self.table[code] = _class(chr(code))


def _class(character: str) -> int:
    if character in "\r\n":
        return NEWLINE
    matching = (number for number, found in _classifiers() if found.encode_ordinary(character))
    return next(matching, OTHER)


@cache
def _classifiers() -> list[tuple[int, tiktoken.Encoding]]:
    """An encoding gives ids only to what its pattern finds, so one of a single class answers yes or no."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    patterns = {LETTER: r"\p{L}", NUMBER: r"\p{N}", SPACE: r"\s"}
    return [
        (number, tiktoken.Encoding("class", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}))
        for number, pattern in patterns.items()
    ]


@njit(cache=True, nogil=True)
def unseen(text: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Characters of `text` that have no class yet, each once."""
    found = []
    at = 0
    while at < len(text):
        if at + 8 <= len(text) and eight_bytes(text, at) & HIGH_BITS == np.uint64(0):  # all ASCII
            at += 8
            continue
        if text[at] >= 0xC0:  # the first byte of a longer character
            code = _decode(text, at)[0]
            if classes[code] == UNSEEN:
                classes[code] = OTHER
                found.append(code)
        at += 1
    return np.array(found, np.int64)


@njit(cache=True, nogil=True)
def word_end(text: np.ndarray, at: int, end: int, classes: np.ndarray, pattern: int) -> int:
    """Where the word ends that begins at byte `at` of a document ending before byte `end`.

    `text` is valid UTF-8 (uint8), its characters are known to `classes`, `pattern` is a number of `SCANNED`.
    """
    first, after = _next(text, at, end, classes)
    if first == LETTER:
        return _run(text, after, end, classes, LETTER)
    if text[at] == 0x27:  # an apostrophe
        short = _short_form(text, after, end, pattern)
        if short > 0:
            return short
    second, behind = _next(text, after, end, classes)
    blank = text[at] == 0x20
    if second == LETTER and (blank or (pattern == 1 and first in (SPACE, OTHER))):
        return _run(text, behind, end, classes, LETTER)
    if pattern == 0:
        if first == NUMBER or (blank and second == NUMBER):
            return _run(text, after, end, classes, NUMBER)
    elif first == NUMBER:  # at most three digits
        if second != NUMBER:
            return after
        third, last = _next(text, behind, end, classes)
        return last if third == NUMBER else behind
    if first == OTHER or (blank and second == OTHER):
        after = _run(text, after, end, classes, OTHER)
        while pattern == 1 and after < end and (text[after] == 0x0A or text[after] == 0x0D):
            after += 1
        return after
    return _white_space(text, at, end, classes, pattern)


@njit(cache=True, nogil=True)
def _white_space(text: np.ndarray, at: int, end: int, classes: np.ndarray, pattern: int) -> int:
    """The end of a run of white space, less its last character if a word follows, which takes that along."""
    last = after = at
    line_end = 0  # behind the last \\r or \\n of the run
    while True:
        found, behind = _next(text, after, end, classes)
        if found == NEWLINE:
            line_end = behind
        elif found != SPACE:
            break
        last, after = after, behind
    if pattern == 1 and line_end > 0:
        return line_end
    return after if after == end or last == at else last


@njit(cache=True, nogil=True)
def _short_form(text: np.ndarray, at: int, end: int, pattern: int) -> int:
    """The end of s, t, m, d, re, ve or ll at `at`, behind an apostrophe; 0 if there is none."""
    if at >= end:
        return 0
    code, after = _decode(text, at)
    one = _folded(code, pattern)
    if one == ord("s") or one == ord("t") or one == ord("m") or one == ord("d"):
        return after
    if after < end:
        code, behind = _decode(text, after)
        two = _folded(code, pattern)
        if (two == ord("e") and (one == ord("r") or one == ord("v"))) or (two == ord("l") and one == ord("l")):
            return behind
    return 0


@njit(cache=True, nogil=True)
def _folded(code: np.int64, pattern: int) -> np.int64 | int:
    """The small letter, where the pattern ignores case."""
    if pattern == 1:
        if code == LONG_S:
            return ord("s")
        if ord("A") <= code <= ord("Z"):
            return code + 32
    return code


@njit(cache=True, nogil=True)
def _run(text: np.ndarray, at: int, end: int, classes: np.ndarray, wanted: int) -> int:
    while True:
        while at < end and text[at] < 0x80 and classes[text[at]] == wanted:  # nearly always ASCII
            at += 1
        found, after = _next(text, at, end, classes)
        if found != wanted:
            return at
        at = after


@njit(cache=True, nogil=True)
def _next(text: np.ndarray, at: int, end: int, classes: np.ndarray) -> tuple[int, int]:
    """The class of the character at `at`, END behind the last one, and where the next begins."""
    if at >= end:
        return END, at
    if text[at] < 0x80:
        return classes[text[at]], at + 1
    code, after = _decode(text, at)
    return classes[code], after


@njit(cache=True, nogil=True)
def _decode(text: np.ndarray, at: int) -> tuple[np.int64, int]:
    """The character at `at` of valid UTF-8, and where the next begins."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (text[at + 1] & 0x3F), at + 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (text[at + 1] & 0x3F) << 6 | (text[at + 2] & 0x3F), at + 3
    return (
        (first & 0x07) << 18 | (text[at + 1] & 0x3F) << 12 | (text[at + 2] & 0x3F) << 6 | (text[at + 3] & 0x3F)
    ), at + 4
