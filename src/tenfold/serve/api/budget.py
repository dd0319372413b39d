"""Budgets: how much of something all requests together, and those of one key, may hold until they are answered."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tenfold.serve.api.keys import Caller


class Budget:
    """Allows at most `most` in all, and a `share` of that for each owner."""

    def __init__(self, most: int, share: float = 1.0):
        self.most, self.each = most, max(1, int(share * most))
        self._held: Counter[str] = Counter()

    @property
    def is_free(self) -> bool:
        """Whether nobody holds anything."""
        return not self._held

    def has_room(self, owner: str, amount: int) -> bool:
        return self._held.total() + amount <= self.most and self._held[owner] + amount <= self.each

    def take(self, owner: str, amount: int) -> None:
        """Hold `amount` more, for which there must be room."""
        self._held[owner] += amount

    def give_back(self, owner: str, amount: int) -> None:
        self._held[owner] -= amount
        self._held += Counter()  # removes owners who hold nothing

    @contextmanager
    def holding(self, owner: str, amount: int) -> Iterator[None]:
        """Hold `amount`, for which there must be room."""
        self.take(owner, amount)
        try:
            yield
        finally:
            self.give_back(owner, amount)


class Place:
    """A request's caller, and what it holds of budgets until its answer has been sent or its client has disconnected."""

    def __init__(self, caller: Caller):
        self.caller, self.owner, self.holds = caller, caller.name, ExitStack()
