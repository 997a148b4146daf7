"""samples.md reads as it was written, whatever a model writes: a Markdown reader gives the very text back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llm.errors import WordmillError
from llm.sampling import Sampling
from stages.samples import check_fit, described, markdown, quoted


def read(text: str) -> list[str]:
    """The text of every quotation on a Markdown page, as a reader shows it."""
    quotations: list[str] = []
    inside = False
    for token in MarkdownIt("commonmark", {"html": True}).parse(text):
        if token.type == "blockquote_open":
            inside = True
            quotations.append("")
        elif token.type == "blockquote_close":
            inside = False
        elif inside:
            assert token.type in ("paragraph_open", "inline", "paragraph_close")
            for child in token.children or []:
                if child.type in ("softbreak", "hardbreak"):
                    quotations[-1] += "\n"
                elif child.type != "html_inline" or child.content not in ("<b>", "</b>"):
                    assert child.type in ("text", "text_special"), child
                    quotations[-1] += child.content
            if token.type == "paragraph_close":
                quotations[-1] += "\n"
    return quotations


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "*stars* and __lines__ and `code` and <b>tags</b> and [link](x)",
        "# no heading",
        "1. no list",
        "- no list",
        "+ no list",
        "---",
        "===",
        "~~~",
        "&amp; &lt;",
        "    no code",
        "\\ \\* back",
        "| a | b |",
        "![p](q)",
    ],
)
def test_what_a_model_writes_is_shown_as_it_is(text: str) -> None:
    page = markdown([{"prompt": "It began", "base": f" so\n{text}", "dpo": f" so\n{text}"}], described(Sampling(0.8)))
    base, dpo = read(page)
    assert base == dpo
    assert base == f"It began so\n{text}\n".replace("    ", "\N{NO-BREAK SPACE}" * 4)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1))
def test_any_line_is_read_back(text: str) -> None:
    assert read(quoted(text, f" {text}\r{text}")) == [f"{text} {text}\n{text}\n"]


def test_paragraphs_stay_apart_and_the_prompt_is_bold() -> None:
    page = markdown(
        [{"prompt": "One.\n\nTwo", "base": " three.\n\nFour.", "dpo": ""}], described(Sampling(0.0, 3, 0.9))
    )
    assert "Temperature 0.0, top-k 3, top-p 0.9." in page
    assert "> <b>One.</b>  \n>\n> <b>Two</b> three.  \n>\n> Four.  " in page
    assert read(page) == ["One.\nTwo three.\nFour.\n", "One.\nTwo\n"]


def test_a_prompt_that_fills_the_context_is_named() -> None:
    check_fit([[0] * 31], True, 32)
    with pytest.raises(WordmillError, match=r"^samples.prompts: prompt 2 has 31 tokens, and model.block_size 32"):
        check_fit([[0], [0] * 32], True, 32)
    with pytest.raises(WordmillError, match=r"^samples.opening_characters: opening 1 has 99 tokens"):
        check_fit([[0] * 100], False, 32)
