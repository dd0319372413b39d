"""What is left out of a corpus, and why: simple rules on the text, exact copies, near copies."""

import hashlib
import re
from collections import Counter

from rensa import RMinHash, RMinHashLSH

MINIMUM_CHARACTERS = 100
PERMUTATIONS = 64
BANDS = 16
NEAR_COPY = 0.8
SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")


def quality_problem(text: str) -> str:
    """Why a text is not worth training on, or an empty string.

    Limits in the spirit of Gopher's rules (Rae et al., arXiv 2112.11446, table A1), wide enough for source code.
    """
    if len(text) < MINIMUM_CHARACTERS:
        return "too short"
    lines = text.splitlines()
    # A paragraph may be long, but prose has a space every few letters.
    if len(text) / max(1, len(lines)) > 1000 and text.count(" ") < 0.08 * len(text):
        return "lines too long (minified or data)"
    if sum(map(str.isalpha, text[:20000])) < 0.25 * min(len(text), 20000):
        return "too few letters"
    counted = Counter(line.strip() for line in lines if line.strip())
    if len(lines) > 20 and counted and sum(counted.values()) > 4 * len(counted):
        return "too repetitive"
    if text.count("\ufffd") > 0.001 * len(text):
        return "broken characters"
    return ""


class CopyFinder:
    """Remembers the documents it has seen: 32 bytes each for exact copies, about a kilobyte for near ones."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._index = RMinHashLSH(threshold=NEAR_COPY, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._hashes: list[RMinHash] = []

    def problem(self, text: str) -> str:
        """`"exact copy"`, `"near copy"` (Jaccard similarity of word 5-grams estimated at 0.8 or more), or empty.

        A text that is neither is remembered.
        """
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self._digests:
            return "exact copy"
        self._digests.add(digest)
        words = _WORD.findall(text)
        if len(words) < SHINGLE_WORDS:
            return ""
        found = RMinHash(num_perm=PERMUTATIONS, seed=1)
        found.update(list({" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}))
        for other in self._index.query(found):
            if found.jaccard(self._hashes[other]) >= NEAR_COPY:
                return "near copy"
        self._index.insert(len(self._hashes), found)
        self._hashes.append(found)
        return ""
