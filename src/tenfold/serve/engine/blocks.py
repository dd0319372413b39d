"""The block manager counts the references to each block of the cache and finds full blocks again by their contents.

The hash of a full block covers its tokens, the hash of the block before it and what else its keys and values depend on, an adapter
or pictures, so equal hashes mean equal prefixes. A block without references keeps its contents until it is needed for other tokens;
the one unused longest is taken first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


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
        """Blocks without references, whether they hold something or not."""
        return len(self._unused)

    def extend_hashes(
        self, hashes: list[bytes], tokens: list[int], n_tokens: int | None = None, salts: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        """Append the hashes of the full blocks up to `n_tokens` to `hashes`, which has those of the first blocks of `tokens`.

        `salts` are `Request.salts`: each counts in the block of its position, and so in those after it.
        """
        size = self.block_size
        for i in range(len(hashes), (len(tokens) if n_tokens is None else n_tokens) // size):
            own = b"".join(at.to_bytes(8) + digest for at, digest in salts if at // size == i)
            before, block = hashes[-1] if hashes else b"", array("q", tokens[i * size : (i + 1) * size]).tobytes()
            hashes.append(hashlib.blake2b(before + own + block, digest_size=16).digest())

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
        """Append blocks until `n_tokens` fit. If too few are free, take none and return False."""
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
        """Let other sequences find this full block, unless they can find an equal one already."""
        if digest not in self._by_hash and block not in self._hash_of:
            self._by_hash[digest] = block
            self._hash_of[block] = digest

    def forget(self) -> None:
        """Let no sequence find what the blocks hold."""
        self._by_hash.clear()
        self._hash_of.clear()

    def release(self, blocks: "array[int]") -> None:
        """Drop one reference to each block and empty the list. The last blocks of a sequence are reused before its first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._unused[block] = None
                if block not in self._hash_of:
                    self._unused.move_to_end(block, last=False)
        del blocks[:]
