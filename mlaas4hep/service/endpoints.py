"""The servers of data that jobs may reach: endpoints, HOST:PORT, which the service's settings allow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from mlaas4hep.data.remote import HTTP_SCHEMES, XROOTD_SCHEMES
from mlaas4hep.data.sources import is_remote
from mlaas4hep.errors import UsageError

MOST = 200
_PORTS = dict.fromkeys(XROOTD_SCHEMES, 1094) | {"https": 443, "http": 80}
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_ENDPOINT = re.compile(rf"(?P<host>(?=[^:]{{1,253}}:){_LABEL}(\.{_LABEL})*):(?P<port>[1-9][0-9]{{0,4}})")
_NUMBERS = re.compile(r"[0-9.]+")


def _checked(text: str) -> str:
    """An endpoint as it is compared, in small letters; raises ValueError for what is none."""
    matched = _ENDPOINT.fullmatch(text.lower())
    if not matched or int(matched["port"]) > 65535:
        raise ValueError(f"{text!r} is no HOST:PORT")
    if _NUMBERS.fullmatch(matched["host"]) and not _is_loopback(matched["host"]):
        raise ValueError(f"{text!r} has an address; write the name that is in the users' lists of files")
    return matched[0]


Endpoint = Annotated[str, AfterValidator(_checked)]


def needed(sources: Iterable[str], redirector: str) -> list[str]:
    """The endpoints that a list of files needs, each once.

    Args:
        sources: the items of a list of files.
        redirector: the server that is put before `/store/...` paths, "" for none.

    Raises UsageError for an item that is no address of a file on a server, or of a scheme that is not read.
    """
    found = []
    for source in sources:
        if is_remote(source):
            found.append(_endpoint_of(source))
        elif redirector and source.startswith("/store/") and not Path(source).exists():
            found.append(_endpoint_of(redirector))
    return list(dict.fromkeys(found))


def _is_loopback(address: str) -> bool:
    try:
        return IPv4Address(address).is_loopback
    except ValueError:
        return False


def _endpoint_of(url: str) -> str:
    try:
        place = urlsplit(url)
        host, port, scheme = place.hostname, place.port, place.scheme.lower()
    except ValueError as error:
        raise UsageError(f"{url} is no address ({error}).", "Correct the list of files.") from error
    if scheme not in _PORTS:
        known = ", ".join(f"{name}://" for name in (*XROOTD_SCHEMES[:1], *HTTP_SCHEMES[1:]))
        raise UsageError(f"{url}: files are not read over {scheme}://.", f"Use {known} or a local path.")
    if not host:
        raise UsageError(f"{url} names no server.", "Correct the list of files.")
    return f"[{host}]:{port or _PORTS[scheme]}" if ":" in host else f"{host}:{port or _PORTS[scheme]}"
