"""Stores the latest responses, conversations and chat completions of each owner in memory, to be continued and looked up."""

from collections import OrderedDict
from typing import Any

import msgspec

from tenfold.serve.api.errors import ApiError


class ResponseStore:
    """Holds at most `most` bytes in all, and a `share` of them for each owner.

    To make room for a new one, the owner's oldest are deleted, then the oldest of the owner with the most bytes. Responses are
    stored as JSON, so that their size is known. Only their owner can get them.
    """

    def __init__(self, most: int, share: float = 1.0):
        self.most, self.each = most, int(share * most)
        self._kept: dict[str, OrderedDict[str, bytes]] = {}  # by owner
        self._bytes: dict[str, int] = {}

    def add(self, owner: str, response: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """Store a response with its conversation, or a later state of it, as the newest of its owner."""
        kept, stored = self._kept.setdefault(owner, OrderedDict()), msgspec.json.encode((response, messages))
        self._bytes[owner] = self._bytes.get(owner, 0) + len(stored) - len(kept.get(response["id"], b""))
        kept[response["id"]] = stored
        kept.move_to_end(response["id"])
        self._make_room(owner, response["id"])

    def replace(self, owner: str, response: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """Replace the stored response of the same id, which must exist, without making it the newest."""
        stored = msgspec.json.encode((response, messages))
        self._bytes[owner] += len(stored) - len(self._kept[owner][response["id"]])
        self._kept[owner][response["id"]] = stored
        self._make_room(owner, response["id"])

    def _make_room(self, owner: str, newest: str) -> None:
        kept = self._kept[owner]
        while self._bytes.get(owner, 0) > self.each:
            self._forget(owner, next(iter(kept)))
        while sum(self._bytes.values()) > self.most:
            older = (name for name in self._bytes if next(iter(self._kept[name])) != newest)
            largest = max(older, key=self._bytes.__getitem__)
            self._forget(largest, next(iter(self._kept[largest])))

    def get(self, owner: str, name: str, kind: str = "response") -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A response and its whole conversation.

        Raises ApiError 404 if the owner has none of this name and `kind`, the value of OpenAI's field `object`.
        """
        stored = self._kept.get(owner, OrderedDict()).get(name)
        response, messages = ({}, []) if stored is None else msgspec.json.decode(stored)
        if response.get("object") != kind:
            raise ApiError(404, f"There is no {kind} {name!r}: it was never stored, or is no longer kept.")
        return response, messages

    def all(self, owner: str, kind: str) -> list[dict[str, Any]]:
        """All responses of a kind, the oldest first."""
        found = (msgspec.json.decode(stored)[0] for stored in list(self._kept.get(owner, {}).values()))
        return [response for response in found if response["object"] == kind]

    def delete(self, owner: str, name: str, kind: str = "response") -> None:
        """Delete a response. Raises ApiError 404 if there is none."""
        self.get(owner, name, kind)
        self._forget(owner, name)

    def _forget(self, owner: str, name: str) -> None:
        self._bytes[owner] -= len(self._kept[owner].pop(name))
        if not self._kept[owner]:
            del self._kept[owner], self._bytes[owner]
