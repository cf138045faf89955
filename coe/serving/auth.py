"""Bearer tokens: a file of hashes that may change while the service runs, and the comparison."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from pathlib import Path

from coe import files
from coe.errors import InvalidInput
from coe.types import BearerToken, BearerTokens

log = logging.getLogger("coe.router")

TOKEN_BYTES = 32


def new_token() -> str:
    """A random token of 256 bits, safe in URLs and headers."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def hashed(name: str, token: str) -> BearerToken:
    """What the file of tokens holds of a token."""
    return BearerToken(name=name, sha256=hashlib.sha256(token.encode()).hexdigest())


class TokenList:
    """The tokens in a file, read again whenever the file changes.

    A file that has become unreadable is reported in the log, and the tokens read last stay valid: a slip while editing
    locks nobody out and lets nobody in. To revoke a token, take its line out.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `InvalidInput` where the file is missing or wrong: a service does not start without its tokens."""
        self._path = Path(path)
        self._seen = self._stamp()
        self._tokens = files.read(self._path, BearerTokens).tokens

    def owner(self, authorization: str | None) -> str | None:
        """Name of the client whose token an `Authorization` header carries; None for no or no known token."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        self._refresh()
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for entry in self._tokens:  # all of them, however early one matches
            if hmac.compare_digest(entry.sha256, digest):
                found = entry.name
        return found

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._tokens = files.read(self._path, BearerTokens).tokens
        except InvalidInput as error:
            log.error("the tokens read before stay valid: %s", error)

    def _stamp(self) -> tuple[int, ...]:
        """What changes with the file; nothing where there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino
