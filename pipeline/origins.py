"""Host names and web origins: by which names a server may be addressed, and which pages may use it.

`wordmill serve` and `wordmill server` both ask here. A web page in the user's browser reaches a server on the same
machine without a login, so both servers look at these headers before anything else:

- `Host`: a foreign name can be made to point to this machine (DNS rebinding). An address in digits cannot.
- `Origin`: a browser sends it with each request that changes something, and it names the page that asks.
"""

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit


class Place(NamedTuple):
    """Where a server is. A browser leaves out the scheme's own port, in `Host` and in `Origin`: it is None then."""

    name: str  # in lower case, without a trailing dot
    port: int | None


class Names:
    """The names of a server: localhost, `names`, and addresses in digits. `local`: loopback addresses only."""

    def __init__(self, names: Iterable[str], local: bool) -> None:
        self._names = {"localhost", *(name.lower().removesuffix(".") for name in names)}
        self._local = local

    def __contains__(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local

    def __str__(self) -> str:
        return ", ".join(sorted(self._names))


LOOPBACK = Names([], local=True)


def host_place(host: str) -> Place | None:
    """The place that a `Host` header names. None if it names none."""
    return _place(f"//{host}")


def origin_place(origin: str) -> Place | None:
    """The place of a page, from an `Origin` header. None for an origin that no server has, such as `null`."""
    return _place(origin) if origin.lower().startswith(("http://", "https://")) else None


def _place(address: str) -> Place | None:
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.username is not None:
            return None
        return Place(parts.hostname.removesuffix("."), parts.port)
    except ValueError:
        return None
