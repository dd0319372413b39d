"""Who owns which block of the cache: reference counts, and blocks found again by what they hold.

A full block is known by a hash of its tokens and of the hash before it, so equal hashes mean equal prefixes. A block that
nobody uses keeps its contents until it is needed for something else; those unused longest go first.
"""

import hashlib
from array import array
from collections import OrderedDict


class BlockManager:
    """`n_blocks` blocks of `block_size` tokens."""

    def __init__(self, n_blocks: int, block_size: int):
        self.n_blocks, self.block_size = n_blocks, block_size
        self._references = [0] * n_blocks
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(n_blocks))  # the first is the next to go
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def n_free(self) -> int:
        """Blocks that nobody uses, whether they still hold something or not."""
        return len(self._unused)

    def extend_hashes(self, hashes: list[bytes], tokens: list[int], n_tokens: int | None = None) -> None:
        """Append to `hashes`, which belong to the first blocks of `tokens`, those of the full blocks up to `n_tokens`."""
        size = self.block_size
        for i in range(len(hashes), (len(tokens) if n_tokens is None else n_tokens) // size):
            before = hashes[-1] if hashes else b""
            block = array("q", tokens[i * size : (i + 1) * size]).tobytes()
            hashes.append(hashlib.blake2b(before + block, digest_size=16).digest())

    def take_known(self, hashes: list[bytes]) -> "array[int]":
        """The longest run of blocks that hold these hashes from the first on, each with one more reference."""
        found = array("i")
        for digest in hashes:
            block = self._by_hash.get(digest)
            if block is None:
                break
            if self._references[block] == 0:
                del self._unused[block]
            self._references[block] += 1
            found.append(block)
        return found

    def grow(self, blocks: "array[int]", n_tokens: int) -> bool:
        """Append blocks until `n_tokens` fit. False, and nothing taken, where too few are free."""
        missing = -(-n_tokens // self.block_size) - len(blocks)
        if missing > len(self._unused):
            return False
        for _ in range(missing):
            block, _ = self._unused.popitem(last=False)
            if digest := self._hash_of.pop(block, None):
                del self._by_hash[digest]
            self._references[block] = 1
            blocks.append(block)
        return True

    def publish(self, block: int, digest: bytes) -> None:
        """Let others find this full block, unless they can find one like it already."""
        if digest not in self._by_hash and block not in self._hash_of:
            self._by_hash[digest] = block
            self._hash_of[block] = digest

    def release(self, blocks: "array[int]") -> None:
        """Give up one reference to each block and empty the list. The ends of sequences are forgotten first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._unused[block] = None
                if block not in self._hash_of:
                    self._unused.move_to_end(block, last=False)
        del blocks[:]

    def forget(self) -> None:
        """Let nobody find any block again (the weights changed)."""
        self._by_hash.clear()
        self._hash_of.clear()
