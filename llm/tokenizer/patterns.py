"""How text falls into words before any merge; no token ever crosses a word's border.

All are public definitions, in the spelling that Python's `regex`, tiktoken and Hugging Face's `tokenizers` read alike.
That is why none uses possessive repeats, although tiktoken's own do for speed: in the syntax of `tokenizers`,
`\\p{N}{1,3}+` means any number of digits.
"""

import regex

from llm.errors import WordmillError

# Words with the space before them, numbers of any length, runs of other signs.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-4's: numbers fall into groups of three digits, line ends stay with the signs before them, a word may begin with
# any one sign, "don't" splits in capitals too.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GPT-4o's: a word also ends where a small letter meets a capital, and keeps its marks and its "'s".
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT_FORM = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+{_SHORT_FORM}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*{_SHORT_FORM}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN = (GPT2, CL100K, O200K)

PATIENCE = 10.0  # seconds that an expression of one's own may take for a text, besides one for each so many characters:
CHARACTERS = 100_000


def cut(text: str, expression: "regex.Pattern[str]") -> list[str]:
    """The words of `text` by an expression of any kind; what it leaves out between two of them is a word too.

    Raises WordmillError where that takes over ten seconds and a second for each `CHARACTERS`.
    """
    words, at = [], 0
    try:
        for match in expression.finditer(text, timeout=PATIENCE + len(text) / CHARACTERS):
            begin, end = match.span()
            words += [text[at:begin], text[begin:end]]
            at = end
    except TimeoutError:
        raise WordmillError(
            f"tokenizer.pattern: takes too long on the text that begins {text[:40]!r}, behind its character {at}; "
            "repeats within repeats do that, such as (a+)+"
        ) from None
    return [word for word in (*words, text[at:]) if word]


def byte_characters() -> list[str]:
    """The character for each byte: itself where it is printable, else the next one free from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]
