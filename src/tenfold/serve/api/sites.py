"""Checks which web pages may use a server, since any page in a browser can send requests to addresses that its user can reach.

Browsers send the page's site in `Origin`, and in `Host` the name by which they address the server. So a site that resolves its
own name to 127.0.0.1 (DNS rebinding) is recognised by that name in `Host`.
"""

import ipaddress
from urllib.parse import urlsplit

from tenfold.serve.api.errors import ApiError

_READING = ("GET", "HEAD", "OPTIONS")


class Sites:
    """The host names that a server listening on `host` answers to, and the origins whose pages may change its state."""

    def __init__(self, host: str, allowed_hosts: tuple[str, ...], allowed_origins: tuple[str, ...]):
        bound = f"[{host}]" if ":" in host else host
        self._names = {_name(known) for known in ("localhost", "127.0.0.1", "[::1]", bound, *allowed_hosts)}
        self._origins = allowed_origins
        self._on_all_addresses = _is_address(_name(bound)) and ipaddress.ip_address(_name(bound)).is_unspecified

    def check(self, method: str, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError 403 for a foreign `Host`, and for a request of another site's page that may change something."""
        host, origin = (headers.get(header, b"").decode("latin-1") for header in (b"host", b"origin"))
        if not self._answers_to(_name(host)):
            raise ApiError(403, f"This server does not answer to the host {host[:200]!r}: allow it with --allowed-hosts.")
        if origin and method not in _READING and not self._trusts(origin, host):
            raise ApiError(403, f"Pages of {origin[:200]!r} may not use this server: allow them with --allowed-origins.")

    def _answers_to(self, name: str) -> bool:
        """Whether `name` is one of this server's.

        A server that listens on all addresses does not know which are its own, so it accepts any IP address: unlike a name, an
        address cannot be made to resolve elsewhere.
        """
        return name in self._names or "*" in self._names or (self._on_all_addresses and _is_address(name))

    def _trusts(self, origin: str, host: str) -> bool:
        return origin in self._origins or "*" in self._origins or origin.partition("://")[2].lower() == host.lower()


def _name(host: str) -> str:
    """The host without its port, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
