"""WORDMILL_MIRROR: one server that answers for all others, where they cannot be reached or should be asked once.

Set to an address such as http://mirror.example:8080/files, it makes https://host/path be fetched from
http://mirror.example:8080/files/host/path. The digests hold as ever, so a mirror need not be trusted where each
file has one.
"""

import os
from urllib.parse import urlsplit

from llm.errors import WordmillError

VARIABLE = "WORDMILL_MIRROR"


def mirrored(url: str) -> str:
    """The address to fetch `url` from. Raises WordmillError."""
    mirror = os.environ.get(VARIABLE, "")
    if not mirror:
        return url
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise WordmillError(f"{VARIABLE}: {mirror!r} is not an http or https address; correct it or unset it")
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    host = parts.netloc.rpartition("@")[2]  # without a user name and a password, which are not the mirror's
    return f"{mirror.rstrip('/')}/{host}{parts.path}{query}"
