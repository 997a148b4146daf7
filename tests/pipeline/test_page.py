"""The page of a rebuild: what Prefect's renderer leaves of the samples."""

from markdown_it import MarkdownIt

from pipeline.page import with_stars


def test_prompts_stay_bold_without_tags() -> None:
    samples = '> <b>Once, in a wood,</b>owls\n> <b>Bo ran </b>home  \n> <b>She said "no"</b> and'
    html = MarkdownIt("commonmark", {"html": False}).render(with_stars(samples))
    assert html.count("<strong>") == 3
    assert "*" not in html
    assert "<strong>Once, in a wood,</strong>\u200aowls" in html
