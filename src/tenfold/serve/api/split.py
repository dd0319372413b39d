"""A/B tests: a candidate answers a share of a model's traffic, so that users' feedback can compare the two."""

import hashlib
from dataclasses import dataclass

from tenfold.serve.api.keys import ANYBODY
from tenfold.serve.api.served_model import ServedModel

UNITS = 2**64


@dataclass
class Split:
    """`candidate` answers `share` (0 to 1) of the users, always the same ones; as the share grows, users are only added.

    `checkpoint` is the hash of the candidate's weights.
    """

    candidate: ServedModel
    share: float
    checkpoint: str

    def takes(self, unit: str) -> bool:
        """Whether the candidate answers a `unit`; it never does after its engine has ended."""
        digest = hashlib.sha256(f"{self.checkpoint}/{unit}".encode(errors="replace")).digest()
        return int.from_bytes(digest[:8]) < self.share * UNITS and self.candidate.backend.is_alive


def unit(user: str, begins: str) -> str:
    """What is always answered by the same model: a user, or for anonymous users a conversation, identified by how it `begins`."""
    return user if user != ANYBODY.name else begins
