"""A share of a model's traffic that a candidate answers, so that people's thumbs can tell the two apart (A/B, canary)."""

import hashlib
from dataclasses import dataclass

from tenfold.serve.api.keys import ANYBODY
from tenfold.serve.api.served_model import ServedModel

UNITS = 2**64


@dataclass
class Split:
    """`candidate` answers `share` (0 to 1) of the users, always the same ones; as the share grows, none of them goes back.

    `checkpoint` is the hash of its weights.
    """

    candidate: ServedModel
    share: float
    checkpoint: str

    def takes(self, unit: str) -> bool:
        """Whether the candidate answers; it does not where its engine has ended."""
        digest = hashlib.sha256(f"{self.checkpoint}/{unit}".encode(errors="replace")).digest()
        return int.from_bytes(digest[:8]) < self.share * UNITS and self.candidate.backend.is_alive


def unit(user: str, begins: str) -> str:
    """What stays with one model: a user, or where nobody is named the conversation, known by what it `begins` with."""
    return user if user != ANYBODY.name else begins
