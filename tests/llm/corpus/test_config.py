from typing import Any

import pytest

from llm.corpus.config import CorpusConfig, kind
from llm.errors import ConfigError

URL = "https://example.org/a.txt"
GOOD = "0" * 64


def test_the_default_is_the_stories() -> None:
    assert CorpusConfig().source == "stories"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"documents": -1}, "documents"),
        ({"documents": 0}, "documents"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"seed": -1}, "seed"),
        ({"val_share": 0.0}, "val_share"),
        ({"test_share": 0.5}, "test_share"),
        ({"text_field": ""}, "text_field"),
        ({"separator": ""}, "separator"),
        ({"source": "files"}, "paths"),
        ({"source": "url"}, "urls"),
        ({"source": "url", "urls": ("file:///etc/passwd",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": ("ftp://example.org/a.txt",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": ("https:///a.txt",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": ("https://example.org/a.zip",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": ("https://example.org/a b.txt",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": ("https://example.org/ä.txt",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": ("https://example.org:port/a.txt",), "sha256": (GOOD,)}, "urls"),
        ({"source": "url", "urls": (URL,)}, "sha256"),
        ({"source": "url", "urls": (URL,), "sha256": ("abc",)}, "sha256"),
        ({"source": "hub"}, "dataset"),
        ({"source": "hub", "dataset": "owner/name"}, "revision"),
        ({"source": "hub", "dataset": "owner/name", "revision": "main"}, "revision"),
        ({"source": "hub", "dataset": "a/b/c", "revision": "0" * 40}, "dataset"),
        ({"source": "hub", "dataset": "./folder", "revision": "0" * 40}, "revision"),
        ({"source": "hub", "dataset": "./folder", "dataset_split": "train[:9]"}, "dataset_split"),
    ],
)
def test_settings_outside_their_limits(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CorpusConfig(**given)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_settings_that_are_right() -> None:
    CorpusConfig(source="files", paths=("a.txt",), documents=0)
    CorpusConfig(source="url", urls=(URL, "http://example.org/b.jsonl.zst?x=y"), sha256=(GOOD, GOOD))
    CorpusConfig(source="hub", dataset="owner/name", revision="0123456789" * 4)
    assert CorpusConfig(source="hub", dataset="../folder").dataset_is_local


def test_kinds() -> None:
    assert kind("a.b.JSONL.GZ") == (".jsonl", ".gz")
    assert kind("a.txt") == (".txt", "")
    assert kind("a.gz") is None
    assert kind("a.md.bz2") == (".md", ".bz2")
    assert kind("a.ndjson.xz") == (".ndjson", ".xz")
    assert kind("a.docx") is None
