"""Files over http and https: resumed, retried, and believed only with the right SHA-256, unless it says `unverified`.

What has arrived lies in `<name>.part` beside the server's validator (ETag or Last-Modified) in `<name>.part.json`, so
that a kill costs nothing: the next call asks for the rest with Range and If-Range. A server that ignores Range, or
whose file has changed, answers with the whole file, and the download starts over. If a resumed file turns out to have
the wrong hash, it is fetched once more from the start; if a whole one does, it is deleted and that is the error.

Retried, waiting 1, 2, 4, 8 and 16 seconds or what Retry-After asks: lost connections, silence of 30 s, less than
1,000 bytes a second over a minute, statuses 408, 429 and 5xx. A try that brings more than was ever there sets the
count back, unless it was too slow; after 50 tries in a row that each bring less than 64 KiB it is given up too. Not
retried: other statuses (404), a host name that does not resolve, a certificate that does not hold, a redirect to
anything but http and https, an answer that is no HTTP address or header.

A file may have `corpus.max_download_bytes`, and never more than it announces or the disk has room for.

The standard library's urllib is enough for this, so nothing is added to what must be installed.
"""

import email.utils
import http.client
import json
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from llm.corpus.addresses import fill
from llm.corpus.config import MAX_DOWNLOAD, UNVERIFIED, CorpusConfig
from llm.corpus.connections import Watch, opener
from llm.corpus.documents import sha256 as sha256_of
from llm.corpus.files import Unit, read
from llm.corpus.mirror import mirrored
from llm.errors import TransientError, WordmillError
from llm.progress import Progress, progress, say

RETRIES = 5  # without a single new byte in between
POOR_TRIES = 50  # in a row that each bring less than
POOR_BYTES = 1 << 16
SILENCE = 30.0  # seconds without a byte that count as a lost connection
SLOWEST = 1_000.0  # bytes a second; less than that over
SLOW_SECONDS = 60.0  # counts as a lost connection too
LONGEST_WAIT = 300.0  # seconds of Retry-After that are honoured; more is left to the user
CHUNK = 1 << 18
SPACE_CHECK = 1 << 26  # bytes between two looks at the disk, where the server does not say how many will come
SPACE_KEPT = 1 << 30  # bytes of the disk that such a file leaves free, or a twentieth of a small disk


class _Lost(Exception):
    """Worth another try, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None, slow: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.slow = slow


def units(config: CorpusConfig, scratch: Path) -> list[Unit]:
    """A unit for each of `config.urls`, downloaded into `scratch` first. Raises WordmillError."""
    found = []
    for number, (url, sha256) in enumerate(zip(config.urls, config.sha256, strict=True)):
        path = scratch / f"{number:03}-{file_name(url)}"
        download(mirrored(url), sha256, path, limit=config.max_download_bytes)
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
    return re.sub(r"[^A-Za-z0-9_.-]", "_", unquote(PurePosixPath(urlsplit(url).path).name))[-100:]


def download(
    url: str, sha256: str, path: Path, wait: Callable[[float], None] = time.sleep, limit: int = MAX_DOWNLOAD
) -> None:
    """Fetch `url` to `path`, unless it is there already with this SHA-256, or UNVERIFIED. Raises WordmillError.

    It is given up where it turns out to have more than `limit` bytes (0: no limit).
    """
    if path.exists():
        if sha256 in (UNVERIFIED, sha256_of(path)):  # only a whole file has this name
            return
        path.unlink()
    fetch = _Download(url, path.with_name(path.name + ".part"), wait, limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    resumed = fetch.run()
    got = sha256_of(fetch.part)
    if sha256 not in (UNVERIFIED, got) and resumed:
        say(f"{url}: the resumed file has the wrong hash; fetching it once more from the start")
        fetch.part.unlink()
        fetch.run()
        got = sha256_of(fetch.part)
    _note(fetch.part).unlink(missing_ok=True)
    if sha256 not in (UNVERIFIED, got):
        fetch.part.unlink()
        raise WordmillError(f"{url}: wrong SHA-256: expected {sha256}, got {got}; if the file is right, correct sha256")
    fetch.part.replace(path)


class _Download:
    """One file on its way into `part`."""

    def __init__(self, url: str, part: Path, wait: Callable[[float], None], limit: int) -> None:
        self.url = url
        self.part = part
        self.wait = wait
        self.limit = limit
        self.target = fill(url)

    def run(self) -> bool:
        """Bring `part` to its full length; whether some of it was there before."""
        most = _size(self.part)  # that was ever there: a server that always starts over makes no progress
        resumed = most > 0
        tries = poor = 0
        with progress(unit="B", label=file_name(self.url)) as bar:
            bar.start_at(most)
            while True:
                try:
                    self._attempt(bar)
                    return resumed
                except _Lost as lost:
                    size = _size(self.part)
                    tries = 1 if size > most and not lost.slow else tries + 1
                    poor = poor + 1 if size < most + POOR_BYTES else 0
                    most = max(most, size)
                    if tries > RETRIES or poor > POOR_TRIES:
                        count = RETRIES if tries > RETRIES else POOR_TRIES
                        raise TransientError(
                            f"{self.url}: {lost}, {count} tries in vain; {size} bytes are kept, so try again later"
                        ) from None
                    self._pause(lost, tries)

    def _pause(self, lost: _Lost, tries: int) -> None:
        pause = 2.0 ** (tries - 1) if lost.wait is None else lost.wait
        if pause > LONGEST_WAIT:
            raise TransientError(f"{self.url}: {lost}, and asks to wait {pause:.0f} s; try again then")
        say(f"{file_name(self.url)}: {lost}; next try in {pause:.0f} s")
        self.wait(pause)

    def _attempt(self, bar: Progress) -> None:
        have = _size(self.part)
        with Watch(SLOWEST, SLOW_SECONDS) as watch:
            try:
                with opener(watch).open(self._request(have), timeout=SILENCE) as response:
                    total = self._begin(response, have)
                    self._receive(response, total, bar, watch)
            except WordmillError:
                raise
            except urllib.error.HTTPError as error:
                error.close()
                self._refused(error, have)
            except urllib.error.URLError as error:
                self._unreachable(error, watch)
            except (http.client.InvalidURL, ValueError) as error:
                raise WordmillError(
                    f"{self.url}: the server's answer cannot be followed ({error}); check the address"
                ) from None
            except (http.client.HTTPException, OSError) as error:
                self._check_rate(watch)
                raise _Lost(f"connection lost ({type(error).__name__})") from None

    def _request(self, have: int) -> urllib.request.Request:
        headers = {"Accept-Encoding": "identity", "User-Agent": "wordmill"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if validator := _validator(self.part):
                headers["If-Range"] = validator
        request = urllib.request.Request(self.target.url, headers=headers)
        if self.target.authorization:
            request.add_unredirected_header("Authorization", self.target.authorization)
        return request

    def _refused(self, error: urllib.error.HTTPError, have: int) -> None:
        """Return where the file is whole already. Raises _Lost or WordmillError."""
        if error.code == 416 and have:
            if _content_range(error.headers) == (None, have):
                return  # the last kill came after the last byte
            self.part.unlink()
            raise _Lost("the partial file does not fit the server's", 0.0) from None
        if error.code in (408, 429) or error.code >= 500:
            raise _Lost(f"the server answers {error.code}", _retry_after(error.headers)) from None
        reason = str(error.reason).partition("\n")[0][:80]  # a redirect loop's reason has two lines
        raise WordmillError(f"{self.url}: the server answers {error.code} {reason}; check the address") from None

    def _unreachable(self, error: urllib.error.URLError, watch: Watch) -> None:
        """Raises _Lost or WordmillError."""
        if isinstance(error.reason, socket.gaierror):
            kind = TransientError if error.reason.errno == socket.EAI_AGAIN else WordmillError
            raise kind(f"{self.url}: host not found; check the address, and whether this machine is online") from None
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise WordmillError(f"{self.url}: certificate refused: {error.reason.verify_message}") from None
        self._check_rate(watch)
        raise _Lost(f"no connection ({error.reason})") from None

    def _begin(self, response: Any, have: int) -> int | None:
        """Make `part` ready for what the server sends, and say what its size will be, if the server says."""
        if response.status == 206:
            start, total = _content_range(response.headers)
            if start != have:
                self.part.unlink(missing_ok=True)
                raise _Lost("the server sent another part than asked for", 0.0)
        else:
            total = response.length  # None where the server does not say
            validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            with self._disk():
                self.part.write_bytes(b"")
                _note(self.part).write_text(json.dumps({"validator": _strong(validator)}), encoding="utf-8")
            have = 0
        if total is not None:
            self._check_size(total)
            free = shutil.disk_usage(self.part.parent).free
            if total - have > free:
                raise WordmillError(
                    f"{self.url}: {total:,} bytes, of which {have:,} are here, but {self.part.parent} has room for "
                    f"{free:,}; make room, and it goes on from here"
                )
        return total

    def _receive(self, response: Any, total: int | None, bar: Progress, watch: Watch) -> None:
        have = _size(self.part)
        looked = have
        bar.start_at(have, total)
        with self._disk(), self.part.open("ab") as file:
            for chunk in _chunks(response):
                have += len(chunk)
                if total is not None and have > total:
                    raise WordmillError(f"{self.url}: more comes than the {total:,} bytes announced; check the address")
                self._check_size(have)
                if total is None and have - looked >= SPACE_CHECK:
                    self._check_space()
                    looked = have
                file.write(chunk)
                file.flush()  # so that a kill loses nothing that has arrived
                bar.update(len(chunk))
                watch.arrived(len(chunk))
        self._check_rate(watch)
        if total is not None and have < total:
            raise _Lost(f"connection lost at {have} of {total} bytes")

    def _check_size(self, size: int) -> None:
        if 0 < self.limit < size:
            self.part.unlink(missing_ok=True)
            raise WordmillError(
                f"{self.url}: more than {self.limit:,} bytes; if that is right, raise corpus.max_download_bytes"
            )

    def _check_space(self) -> None:
        disk = shutil.disk_usage(self.part.parent)
        if disk.free < min(SPACE_KEPT, disk.total // 20):
            raise WordmillError(
                f"{self.url}: does not say how long it is, and {self.part.parent} has only {disk.free:,} bytes left; "
                "make room, and it goes on from here"
            )

    def _check_rate(self, watch: Watch) -> None:
        if watch.too_slow:
            raise _Lost(f"less than {watch.rate:g} bytes a second over {watch.seconds:g} s", slow=True) from None

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What goes wrong with files here is no fault of the connection."""
        try:
            yield
        except _FromServer as lost:
            raise lost.error from None
        except OSError as error:
            raise WordmillError(f"{self.part}: {error.strerror}; make room, and it goes on from here") from None


class _FromServer(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _chunks(response: Any) -> Iterator[bytes]:
    """The body. Raises _FromServer."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise _FromServer(error) from None
        if not chunk:
            return
        yield chunk


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """Start and total of `Content-Range: bytes 5-9/10`, or of `bytes */10`; None for what is not said."""
    number = "([0-9]{1,18})"
    match = re.fullmatch(rf"bytes (?:{number}-[0-9]+|\*)/(?:{number}|\*)", headers.get("Content-Range", "").strip())
    start, total = match.groups() if match else (None, None)
    return (int(start) if start else None, int(total) if total else None)


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait, as a number or as a date; None for what is neither."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", value):
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


def _strong(validator: str) -> str:
    """A validator that If-Range may carry, or nothing."""
    fits = validator.isascii() and validator.isprintable() and len(validator) <= 1000
    return validator if fits and not validator.startswith("W/") else ""


def _validator(part: Path) -> str:
    try:
        return _strong(str(json.loads(_note(part).read_text(encoding="utf-8"))["validator"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
