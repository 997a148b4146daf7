"""Files over http and https: resumed, retried, and believed only with the right SHA-256, unless it says `unverified`.

What has arrived lies in `<name>.part` beside the server's validator (ETag or Last-Modified) in `<name>.part.json`, so
that a kill costs nothing: the next call asks for the rest with Range and If-Range. A server that ignores Range, or
whose file has changed, answers with the whole file, and the download starts over. If a resumed file turns out to have
the wrong hash, it is fetched once more from the start; if a whole one does, it is deleted and that is the error.

Retried, waiting 1, 2, 4, 8 and 16 seconds or what Retry-After asks: lost connections, silence of 30 s, statuses 408,
429 and 5xx. Every byte that arrives sets the count back. Not retried: other statuses (404), a host name that does not
resolve, a certificate that does not hold, a redirect to anything but http and https.

The standard library's urllib is enough for this, so nothing is added to what must be installed.
"""

import email.utils
import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from llm.corpus.config import UNVERIFIED, CorpusConfig
from llm.corpus.documents import sha256 as sha256_of
from llm.corpus.files import Unit, read
from llm.corpus.mirror import mirrored
from llm.errors import TransientError, WordmillError
from llm.progress import Progress, progress, say

RETRIES = 5  # without a single new byte in between
SILENCE = 30.0  # seconds without a byte that count as a lost connection
LONGEST_WAIT = 300.0  # seconds of Retry-After that are honoured; more is left to the user
CHUNK = 1 << 18


class _Lost(Exception):
    """Worth another try, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise WordmillError(f"{req.full_url}: redirects to {newurl!r}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def units(config: CorpusConfig, scratch: Path) -> list[Unit]:
    """A unit for each of `config.urls`, downloaded into `scratch` first. Raises WordmillError."""
    found = []
    for number, (url, sha256) in enumerate(zip(config.urls, config.sha256, strict=True)):
        path = scratch / f"{number:03}-{file_name(url)}"
        download(mirrored(url), sha256, path)
        digest = sha256 if sha256 != UNVERIFIED else sha256_of(path)
        found.append(Unit(f"{url} {digest}", lambda path=path, url=url: read(path, url, config, scratch)))  # type: ignore[misc]
    _tell_unverified(config, found)
    return found


def _tell_unverified(config: CorpusConfig, units: list[Unit]) -> None:
    names = [unit.name for unit, sha256 in zip(units, config.sha256, strict=True) if sha256 == UNVERIFIED]
    if names:
        say(f"{len(names)} of {len(units)} files came without a SHA-256 to compare; to hold later downloads to")
        say("these bytes, write their digests, which data/corpus/manifest.json records too, into corpus.sha256:")
    for name in names:
        url, _, digest = name.rpartition(" ")
        say(f"  {digest} {url}")


def file_name(url: str) -> str:
    """A name for the downloaded file that is safe on every file system and keeps the ending."""
    return re.sub(r"[^\w.-]", "_", unquote(PurePosixPath(urlsplit(url).path).name))[-100:]


def download(url: str, sha256: str, path: Path, wait: Callable[[float], None] = time.sleep) -> None:
    """Fetch `url` to `path`, unless it is there already with this SHA-256, or UNVERIFIED. Raises WordmillError."""
    if path.exists():
        if sha256 in (UNVERIFIED, sha256_of(path)):  # only a whole file has this name
            return
        path.unlink()
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    resumed = _fetch(url, part, wait)
    got = sha256_of(part)
    if sha256 not in (UNVERIFIED, got) and resumed:
        say(f"{url}: the resumed file has the wrong hash; fetching it once more from the start")
        part.unlink()
        _fetch(url, part, wait)
        got = sha256_of(part)
    _note(part).unlink(missing_ok=True)
    if sha256 not in (UNVERIFIED, got):
        part.unlink()
        raise WordmillError(f"{url}: wrong SHA-256: expected {sha256}, got {got}; if the file is right, correct sha256")
    part.replace(path)


def _fetch(url: str, part: Path, wait: Callable[[float], None]) -> bool:
    """Bring `part` to its full length; whether some of it was there before."""
    resumed = part.exists() and part.stat().st_size > 0
    tries = 0
    with progress(unit="B", label=file_name(url)) as bar:
        bar.start_at(_size(part))
        while True:
            before = _size(part)
            try:
                _attempt(url, part, bar)
                return resumed
            except _Lost as lost:
                arrived = _size(part) > before
                tries = 1 if arrived else tries + 1
                if tries > RETRIES:
                    raise TransientError(
                        f"{url}: {lost}, {RETRIES} tries in vain; {_size(part)} bytes are kept, so try again later"
                    ) from None
                pause = 2.0 ** (tries - 1) if lost.wait is None else lost.wait
                if pause > LONGEST_WAIT:
                    raise TransientError(f"{url}: {lost}, and asks to wait {pause:.0f} s; try again then") from None
                say(f"{file_name(url)}: {lost}; next try in {pause:.0f} s")
                wait(pause)


def _attempt(url: str, part: Path, bar: Progress) -> None:
    have = _size(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "wordmill"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := _validator(part):
            headers["If-Range"] = validator
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=SILENCE) as response:
            total = _begin(response, part, have)
            _receive(response, part, total, bar)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                if _content_range(error.headers) == (None, have):
                    return  # the last kill came after the last byte
                part.unlink()
                raise _Lost("the partial file does not fit the server's", 0.0) from None
            if error.code in (408, 429) or error.code >= 500:
                raise _Lost(f"the server answers {error.code}", _retry_after(error.headers)) from None
            reason = str(error.reason).partition("\n")[0]  # a redirect loop's reason has two lines
            raise WordmillError(f"{url}: the server answers {error.code} {reason}; check the address") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            kind = TransientError if error.reason.errno == socket.EAI_AGAIN else WordmillError
            raise kind(f"{url}: host not found; check the address, and whether this machine is online") from None
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise WordmillError(f"{url}: certificate refused: {error.reason.verify_message}") from None
        raise _Lost(f"no connection ({error.reason})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Lost(f"connection lost ({type(error).__name__})") from None


def _begin(response: Any, part: Path, have: int) -> int | None:
    """Make `part` ready for what the server sends, and say what its size will be, if the server says."""
    if response.status == 206:
        start, total = _content_range(response.headers)
        if start != have:
            part.unlink()
            raise _Lost("the server sent another part than asked for", 0.0)
        return total
    part.write_bytes(b"")
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    _note(part).write_text(json.dumps({"validator": "" if validator.startswith("W/") else validator}))
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _receive(response: Any, part: Path, total: int | None, bar: Progress) -> None:
    have = _size(part)
    bar.start_at(have, total)
    with part.open("ab") as file:
        while chunk := response.read1(CHUNK):
            try:
                file.write(chunk)
                file.flush()  # so that a kill loses nothing that has arrived
            except OSError as error:
                raise WordmillError(f"{part}: {error.strerror}; make room, and it goes on from here") from None
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise _Lost(f"connection lost at {have} of {total} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """Proxies from the environment, redirects, http and https; nothing that opens file: or ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _OnlyHttp(),
    ):
        opener.add_handler(handler)
    return opener


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """Start and total of `Content-Range: bytes 5-9/10`, or of `bytes */10`; None for what is not said."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", headers.get("Content-Range", "").strip())
    start, total = match.groups() if match else (None, None)
    return (int(start) if start else None, int(total) if total else None)


def _retry_after(headers: Any) -> float | None:
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _validator(part: Path) -> str:
    try:
        return str(json.loads(_note(part).read_text())["validator"])
    except (FileNotFoundError, ValueError, KeyError):
        return ""


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
