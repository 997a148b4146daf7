"""Pages for people from templates in stages/templates/: how numbers and nested figures are shown."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """The templates; what is HTML is escaped, an unknown name is an error."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=lambda name: (name or "").endswith(".html"),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters["figure"] = figure
    templates.filters["rows"] = rows
    return templates


def figure(value: Any) -> str:
    """A number for people: thousands apart, four significant digits where it is not whole."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) >= 1e-3 else f"{value:.3g}"


def rows(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested metrics as (dotted name, value) in the order given; lists joined by commas."""
    flat: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            flat += rows(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else value))
    return flat
