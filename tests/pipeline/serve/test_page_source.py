"""What the page's source says by itself: names for screen readers, contrast, nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest

from pipeline.serve.app import ICON, PAGE

SOURCE = PAGE.read_text(encoding="utf-8")
STYLE = re.search(r"<style>(.*?)</style>", SOURCE, re.DOTALL)[1]  # type: ignore[index]
SCRIPT = re.search(r"<script>(.*?)</script>", SOURCE, re.DOTALL)[1]  # type: ignore[index]
TEXTS = [("--ink", "--ground"), ("--soft", "--ground"), ("--mark", "--ground"), ("--go", "--ground")]
TEXTS += [("--on-go", "--go"), ("--wrong", "--ground")]


class Elements(HTMLParser):
    """All elements with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(SOURCE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag in tags]


ELEMENTS = Elements()


def colours(scheme: str) -> dict[str, tuple[float, ...]]:
    """The colours of a scheme by name, 0 to 1."""
    light, dark = re.search(
        r"(:root.*?)@media \(prefers-color-scheme: dark\) \{(.*?\})\s*\}", STYLE, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    found = {}
    for part in [light] if scheme == "light" else [light, dark]:
        for name, number in re.findall(r"(--[\w-]+): #(\w{6})", part):
            found[name] = tuple(int(number[at : at + 2], 16) / 255 for at in (0, 2, 4))
        for name, *numbers in re.findall(r"(--[\w-]+): (\d+) (\d+) (\d+)", part):
            found[name] = tuple(int(number) / 255 for number in numbers)
    return found


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """WCAG 2.2's contrast ratio."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return sum(factor * part for factor, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_wcags_own_example() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x77 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    found = colours(scheme)
    for text, ground in TEXTS:
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    assert contrast(found["--line"], found["--ground"]) >= 3  # borders of controls
    pairs = zip(found["--unlikely"], found["--ground"], strict=True)
    darkest = tuple((colour + ground) / 2 for colour, ground in pairs)  # of the least likely token
    assert contrast(found["--ink"], darkest) >= 4.5


def test_no_colour_stands_outside_the_two_schemes() -> None:
    assert colours("light").keys() == colours("dark").keys()
    rules = STYLE.split("* {", 1)[1]
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rules)) == {"#0003"}  # a shadow


def test_every_control_has_a_name() -> None:
    labelled = [label["for"] for label in ELEMENTS.of("label")]
    controls = [control["id"] for control in ELEMENTS.of("input", "textarea", "select")]
    assert len(controls) == 11
    assert sorted(labelled) == sorted(controls)
    outputs = [output["for"] for output in ELEMENTS.of("output")]
    assert outputs == [control["id"] for control in ELEMENTS.of("input") if control["type"] == "range"]
    within = re.findall(r"<label[^>]*>(.*?)</label>", SOURCE)
    assert all(name and "<" not in name for name in within)  # the value is no part of the name


def test_what_changes_is_announced() -> None:
    roles = {attributes["role"] for _, attributes in ELEMENTS.found if "role" in attributes}
    assert roles == {"alert", "status", "tooltip"}
    described = {name for _, attributes in ELEMENTS.found for name in attributes.get("aria-describedby", "").split()}
    assert described <= {attributes.get("id") for _, attributes in ELEMENTS.found}


def test_the_script_names_only_elements_that_are_there() -> None:
    there = {attributes["id"] for _, attributes in ELEMENTS.found if "id" in attributes}
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT)) <= there


@pytest.mark.parametrize("key", ["ArrowRight", "ArrowLeft", "Home", "End", "Escape", "ctrlKey", "metaKey"])
def test_the_keyboard_is_listened_to(key: str) -> None:
    assert key in SCRIPT


def test_nothing_comes_from_elsewhere() -> None:
    addresses = [
        value
        for _, attributes in ELEMENTS.found
        for name, value in attributes.items()
        if name in ("src", "href", "action")
    ]
    assert addresses == ["/favicon.ico"]
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", STYLE + SCRIPT.replace("// ", ""))
    assert re.findall(r'fetch\("(.*?)"', SCRIPT) == ["/v1/models", "/v1/completions"]
    assert ICON.read_bytes().startswith(b"<svg")


def test_nothing_is_put_in_as_markup() -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", SCRIPT)
    assert not [name for _, attributes in ELEMENTS.found for name in attributes if name.startswith("on")]
