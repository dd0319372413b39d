"""Which tokens the next step computes: replies first, then prompts in pieces, within a budget of tokens.

A prompt and a reply differ only in how many of their tokens are not computed yet. Whoever runs keeps running while there
are blocks; when there are none, the latest to come gives its blocks back and starts again later (recomputation; its
prefix may still be found in the cache).
"""

from collections import deque
from dataclasses import dataclass

from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.request import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next `count` tokens of a sequence, of which the last `drafted` are guesses."""

    sequence: Sequence
    count: int
    drafted: int = 0


class Scheduler:
    """Sequences wait, run and leave. At most `token_budget` tokens a step, `max_running` sequences at once.

    Steps in which nobody is being answered may be longer: `prompt_budget`, where it is given.
    """

    def __init__(self, blocks: BlockManager, token_budget: int, max_running: int, prompt_budget: int = 0):
        self.blocks, self.token_budget, self.max_running = blocks, token_budget, max_running
        self.prompt_budget = max(token_budget, prompt_budget)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}  # in the order of their coming
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def step(self) -> list[ScheduledSequence]:
        """What to compute now. Blocks for all of it are taken."""
        budget = self.token_budget if any(s.n_output for s in self.running) else self.prompt_budget
        work: list[ScheduledSequence] = []
        turn = sorted(self.running, key=lambda s: len(s.tokens) - s.computed > 1)  # stable: replies before prompts
        for sequence in turn:
            if budget and sequence in self.running and (piece := self._piece(sequence, budget, work)):
                budget -= piece.count
                work.append(piece)
        while self.waiting and budget and len(self.running) < self.max_running:
            if not self._admit(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            self.running[sequence] = None
            piece = ScheduledSequence(sequence, min(budget, len(sequence.tokens) - sequence.computed))
            if not self.blocks.grow(sequence.blocks, sequence.computed + piece.count):
                self._preempt(sequence)
                self.preemptions -= 1  # it never ran
                break
            budget -= piece.count
            work.append(piece)
        return work

    def _piece(self, sequence: Sequence, budget: int, work: list[ScheduledSequence]) -> ScheduledSequence | None:
        """The next tokens of a running sequence, for which later ones may lose their blocks."""
        left = len(sequence.tokens) - sequence.computed
        if not left:  # its last token is on its way
            return None
        drafted = min(len(sequence.draft), budget - left) if left <= budget else 0
        count = min(left, budget) + max(drafted, 0)
        while not self.blocks.grow(sequence.blocks, sequence.computed + count):
            if drafted > 0:
                count, drafted = count - drafted, 0
                continue
            victim = next((s for s in reversed(self.running) if not any(w.sequence is s for w in work)), sequence)
            self._preempt(victim)
            if victim is sequence:
                return None
        return ScheduledSequence(sequence, count, max(drafted, 0))

    def _admit(self, sequence: Sequence) -> bool:
        """Take what the cache knows of a waiting sequence; False where the rest of its prompt has no room now."""
        self.blocks.extend_hashes(sequence.hashes, sequence.tokens)
        usable = sequence.hashes[: (len(sequence.tokens) - 1) // self.blocks.block_size]  # one token must be computed
        sequence.blocks = self.blocks.take_known(usable)
        needed = -(-len(sequence.tokens) // self.blocks.block_size) - len(sequence.blocks)
        if needed > self.blocks.n_free:
            self.blocks.release(sequence.blocks)
            return False
        sequence.computed = len(sequence.blocks) * self.blocks.block_size
        self.prefix_queries += len(sequence.tokens)
        self.prefix_hits += sequence.computed
        if not sequence.preemptions:
            sequence.cached_tokens = sequence.computed
        return True

    def computed(self, sequence: Sequence, count: int) -> None:
        """`count` more tokens of a sequence have keys and values; blocks that became full can be found by others."""
        self.publish(sequence, sequence.computed, sequence.computed + count)
        sequence.computed += count

    def publish(self, sequence: Sequence, begin: int, end: int) -> None:
        """Tokens `begin` to `end` are known now, those before `begin` were: let others find the blocks that are full."""
        size = self.blocks.block_size
        if begin // size == end // size:
            return
        self.blocks.extend_hashes(sequence.hashes, sequence.tokens, end)
        for i in range(begin // size, end // size):
            self.blocks.publish(sequence.blocks[i], sequence.hashes[i])

    def finish(self, sequence: Sequence) -> None:
        """A sequence that runs or waits leaves, and its blocks are free at once."""
        if sequence in self.running:
            del self.running[sequence]
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.blocks.release(sequence.blocks)

    def cancel(self, request_id: str) -> list[Sequence]:
        """Every sequence of a request leaves now."""
        gone = [s for s in (*self.running, *self.waiting) if s.request.id == request_id]
        for sequence in gone:
            self.finish(sequence)
        return gone

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self.blocks.release(sequence.blocks)
        sequence.computed = 0
        sequence.draft = []
        sequence.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(sequence)
