"""Addresses of downloads: what they may look like, and the secrets that they may need but never show.

An address stands in params.yaml, so MLflow, the manifest and every message know it. It must therefore hold no secret.
Where one is needed, the address says `${NAME}`, and the environment variable NAME is read when the download begins:

    https://${DOWNLOAD_USER}:${DOWNLOAD_PASSWORD}@example.org/words.txt
    https://example.org/words.txt?token=${DOWNLOAD_TOKEN}

NAME begins with DOWNLOAD_. Whoever may start a run may name any address, so no other variable of the machine's, such as
a store's password, goes into one.

A user name and a password are sent as HTTP basic authentication to the address's own host, never to one that it
redirects to. A user name, a password, or a parameter such as `token` or `signature` that is written out is refused.
"""

import base64
import os
import re
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from llm.errors import ConfigError, WordmillError

FROM_ENVIRONMENT = re.compile(r"\$\{(\w+)\}", re.ASCII)
PREFIX = "DOWNLOAD_"  # of the variables that an address may name
SECRET_PARAMETER = re.compile(
    r"(.*[-_])?(token|signature|secret|password|passwd|credential|apikey|key|sig|auth|pwd)|accesstoken", re.IGNORECASE
)
NOT_ALLOWED = re.compile(r"[^\x21-\x7e]")  # spaces, control characters, what is not ASCII


class Filled(NamedTuple):
    """An address as it is asked for."""

    url: str  # without a user name and a password
    authorization: str  # the header's value, or empty


def check(url: str) -> SplitResult:
    """The parts of an http or https address without secrets. Raises ConfigError for the field `urls`."""
    if NOT_ALLOWED.search(url):
        raise ConfigError(
            "urls",
            f"{shown(url)!r} holds spaces, control characters or letters beyond ASCII; write them as %20 and so on",
        )
    try:
        parts = urlsplit(url)
        _ = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ConfigError("urls", f"{shown(url)!r} is not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("urls", f"{shown(url)!r} is not an http or https address; local files are `source: files`")
    other = next((name for name in FROM_ENVIRONMENT.findall(url) if not name.startswith(PREFIX)), None)
    if other:
        raise ConfigError(
            "urls", f"{shown(url)!r} names the environment variable {other}; use one whose name begins with {PREFIX}"
        )
    secret = next((name for name, value in _secrets(parts) if FROM_ENVIRONMENT.sub("", value)), None)
    if secret:
        raise ConfigError(
            "urls",
            f"{shown(url)!r} holds a secret ({secret}), which logs would show; write ${{DOWNLOAD_NAME}} in its "
            "place, and set the environment variable DOWNLOAD_NAME",
        )
    return parts


def _secrets(parts: SplitResult) -> list[tuple[str, str]]:
    """What should be no one else's: its name, and its value."""
    found = [("user name", parts.username or ""), ("password", parts.password or "")]
    parameters = parse_qsl(parts.query, keep_blank_values=True) + parse_qsl(parts.fragment)
    return found + [(name, value) for name, value in parameters if SECRET_PARAMETER.fullmatch(name)]


def fill(url: str) -> Filled:
    """The address with the values of environment variables. Raises WordmillError for one that is not set."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    target = _filled(urlunsplit((parts.scheme, host, parts.path, parts.query, "")), url)
    if NOT_ALLOWED.search(target):
        raise WordmillError(f"{url}: an environment variable that it names holds spaces or other signs no address has")
    authorization = ""
    if parts.username is not None:
        user, password = (_filled(unquote(part or ""), url) for part in (parts.username, parts.password))
        authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return Filled(target, authorization)


def _filled(text: str, url: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], "")
        if not found:
            raise WordmillError(f"{url}: the environment variable {match[1]} is not set")
        return found

    return FROM_ENVIRONMENT.sub(value, text)


def shown(url: str) -> str:
    """An address that others made, for messages: no user name, no password, no parameters."""
    bare = re.sub(r"(?<=//)[^/?#]*@", "***@", url)
    return re.sub(r"[?#].*", "?…", bare, flags=re.DOTALL)
