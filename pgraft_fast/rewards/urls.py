"""URLs of users: what may be shown of them, and whether they lead to this machine."""

import os
import re
import socket
from typing import Any
from urllib.parse import quote

from pgraft_fast.errors import InputError

HIDDEN = "***"
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)(\S+)")
_BEHIND = "'\"`)]>,;:."
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def without_secrets(text: str) -> str:
    """A text in which all that may be secret in a URL stands as ***: user and password, values of the query, fragment.

    ${NAME}, which stands for an environment variable, is no secret.
    """
    return _URL.sub(lambda match: match[1] + _shown(match[2]), text)


def _shown(rest: str) -> str:
    """What follows ://, and perhaps signs behind the URL."""
    body = rest.rstrip(_BEHIND)
    behind = rest[len(body) :]
    authority = re.split(r"[/?#]", body, maxsplit=1)[0]
    # A password may hold what ends a host, where it was not quoted.
    end = authority if "@" in authority or re.fullmatch(r"[^:]*|\[[^]]*\]|.*:\d*", authority) else body
    user, at, _ = end.rpartition("@")
    if at:
        secret = user.partition(":")[2] or user
        shown = user if _VARIABLE.fullmatch(secret) else HIDDEN
        body = f"{shown}@{body[len(user) + 1 :]}"
    before, mark, query = body.partition("?")
    query, fragment_mark, fragment = (query if mark else before).partition("#")
    if mark:
        query = "&".join(_hidden(pair) for pair in query.split("&"))
        before = f"{before}?{query}"
    else:
        before = query
    return before + (f"#{HIDDEN}" if fragment_mark and fragment else fragment_mark) + behind


def _hidden(pair: str) -> str:
    name, mark, value = pair.partition("=")
    if not mark:
        name, value = "", pair
    return pair if not value or _VARIABLE.fullmatch(value) else f"{name}{mark}{HIDDEN}"


def with_variables(url: str) -> str:
    """${NAME} replaced by that environment variable, quoted unless the URL begins with it. Raises InputError."""
    missing = [name for name in _VARIABLE.findall(url) if name not in os.environ]
    if missing:
        raise InputError(f"url = {without_secrets(url)!r}: there is no environment variable {missing[0]}; set it")

    def value(match: re.Match[str]) -> str:
        return quote(os.environ[match[1]], safe=":") if match.start() else os.environ[match[1]]

    return _VARIABLE.sub(value, url)


def is_this_machine(host: str) -> bool:
    """Whether a name or address is one of this machine's own: the system lets us listen there."""
    if host.rstrip(".") == "localhost":
        return True
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return any(_can_listen(family, address) for family, _, _, _, address in addresses)


def _can_listen(family: int, address: Any) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as listener:
            listener.bind(address)
    except OSError:
        return False
    return True
