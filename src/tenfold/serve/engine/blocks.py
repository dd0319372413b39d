"""The block manager counts the references to each block of the KV cache, and finds full blocks by the hash of their prefix.

The hash of a full block covers its tokens, the hash of the block before it and what else its keys and values depend on: an adapter
or images. So equal hashes mean equal prefixes. A block without references keeps its contents until it is needed for other tokens;
the block that has been unused longest is taken first (LRU).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class BlockManager:
    """Manages `n_blocks` blocks of `block_size` tokens."""

    def __init__(self, n_blocks: int, block_size: int):
        self.n_blocks, self.block_size = n_blocks, block_size
        self._references = [0] * n_blocks
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(n_blocks))  # the first is taken next
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def n_free(self) -> int:
        """The number of blocks without references, including those whose contents can still be found."""
        return len(self._unused)

    def extend_hashes(
        self, hashes: list[bytes], tokens: list[int], n_tokens: int | None = None, salts: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        """Append to `hashes`, which has those of the first blocks of `tokens`, the hashes of all further full blocks.

        Full blocks are those within the first `n_tokens` (by default all) tokens. `salts` are `Request.salts`: each enters the
        hash of the block of its position, and so the hashes of the blocks after it.
        """
        size = self.block_size
        for i in range(len(hashes), (len(tokens) if n_tokens is None else n_tokens) // size):
            own = b"".join(at.to_bytes(8) + digest for at, digest in salts if at // size == i)
            before, block = hashes[-1] if hashes else b"", array("q", tokens[i * size : (i + 1) * size]).tobytes()
            hashes.append(hashlib.blake2b(before + own + block, digest_size=16).digest())

    def take_known(self, hashes: list[bytes]) -> "array[int]":
        """The blocks with the first of these hashes, up to the first hash that is not found; each gets one more reference."""
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
        """Append free blocks until `n_tokens` fit. If too few are free, append none and return False."""
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
        """Let other sequences find this full block by its hash, unless an equal block can be found already."""
        if digest not in self._by_hash and block not in self._hash_of:
            self._by_hash[digest] = block
            self._hash_of[block] = digest

    def forget(self) -> None:
        """Forget all hashes, so that no sequence finds the blocks' contents."""
        self._by_hash.clear()
        self._hash_of.clear()

    def release(self, blocks: "array[int]") -> None:
        """Drop one reference to each block and empty `blocks`.

        A sequence's last blocks are reused before its first, which more sequences may share.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._unused[block] = None
                if block not in self._hash_of:
                    self._unused.move_to_end(block, last=False)
        del blocks[:]
