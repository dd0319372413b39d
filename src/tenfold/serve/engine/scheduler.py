"""The scheduler decides which tokens the next step computes: replies first, then prompts in pieces, within a budget of tokens.

A prompt and a reply differ only in how many of their tokens have not been computed. A running sequence keeps running while there
are free blocks. When there are none, the sequence that arrived last is preempted: it returns its blocks and starts again later
(recomputation; its prefix may still be in the cache).

Owners share fairly: of the owners with something to compute, the one for whom the fewest tokens have been computed goes first (the
virtual token counter of Sheng et al., 2024, arXiv:2401.00588). Requests of one owner go in the order of arrival.
"""

from collections import Counter, deque
from dataclasses import dataclass
from itertools import chain

from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.request import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next `count` tokens of a sequence, of which the last `drafted` are guesses."""

    sequence: Sequence
    count: int
    drafted: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether this step computes the sequence's last token, so that its next token is due."""
        s = self.sequence
        return s.computed + self.count - self.drafted == len(s.tokens)


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of a step and of a sequence, named as in vLLM.

    A step without replies may have `max_num_prompt_tokens`, if that is more than `max_num_batched_tokens`. A `max_model_len` of 0
    is the model's own limit.
    """

    max_num_batched_tokens: int = 128
    max_num_prompt_tokens: int = 0
    max_num_seqs: int = 64
    max_model_len: int = 0


class Scheduler:
    """Holds the waiting and the running sequences, and plans steps within the limits of `config`."""

    def __init__(self, blocks: BlockManager, config: SchedulerConfig):
        self.blocks, self.config = blocks, config
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}  # in the order of arrival
        self.served: Counter[str] = Counter()  # tokens computed for each owner
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        An owner who had no sequences here gets no credit for that time: its counter is raised to that of the owner served least.
        """
        owner, active = sequence.request.owner, {s.request.owner for s in chain(self.running, self.waiting)}
        if not active:
            self.served.clear()
        elif owner not in active:
            self.served[owner] = max(self.served[owner], min(self.served[name] for name in active))
        self.waiting.append(sequence)

    def _turn(self, sequence: Sequence) -> int:
        """The sort key of a sequence: replies go first, then prompts by how many tokens their owner has been served."""
        return 1 + self.served[sequence.request.owner] if len(sequence.tokens) - sequence.computed > 1 else 0

    def step(self) -> list[ScheduledSequence]:
        """Plan a step: the tokens to compute, for which blocks have been taken."""
        config, budget = self.config, self.config.max_num_batched_tokens
        if not any(s.n_output for s in self.running):
            budget = max(budget, config.max_num_prompt_tokens)
        work: list[ScheduledSequence] = []
        for sequence in sorted(self.running, key=self._turn):  # stable
            if self.waiting:
                budget -= self._start_waiting(budget, work, before=self._turn(sequence))
            if budget and sequence in self.running and (piece := self._piece(sequence, budget, work)):
                budget -= piece.count
                self._take(piece, work)
        self._start_waiting(budget, work, before=float("inf"))
        return work

    def _start_waiting(self, budget: int, work: list[ScheduledSequence], before: float) -> int:
        """Start waiting sequences whose turn comes `before` the given one, as long as there is room.

        Returns how many tokens of `budget` they take.
        """
        left = budget
        while self.waiting and left and len(self.running) < self.config.max_num_seqs:
            sequence = min(self.waiting, key=lambda s: self.served[s.request.owner])
            if 1 + self.served[sequence.request.owner] >= before or not self._admit(sequence):
                break
            self.waiting.remove(sequence)
            self.running[sequence] = None
            piece = ScheduledSequence(sequence, min(left, len(sequence.tokens) - sequence.computed))
            self.blocks.grow(sequence.blocks, sequence.computed + piece.count)  # `_admit` has checked that they are free
            left -= piece.count
            self._take(piece, work)
        return budget - left

    def _take(self, piece: ScheduledSequence, work: list[ScheduledSequence]) -> None:
        work.append(piece)
        self.served[piece.sequence.request.owner] += piece.count

    def _piece(self, sequence: Sequence, budget: int, work: list[ScheduledSequence]) -> ScheduledSequence | None:
        """The next tokens of a running sequence; None if there are none, or no blocks for them.

        Sequences that arrived later may be preempted for their blocks.
        """
        left = len(sequence.tokens) - sequence.computed
        if not left:  # its last token is being computed (asynchronous scheduling)
            return None
        drafted = min(len(sequence.draft), budget - left) if left <= budget else 0
        count = min(left, budget) + drafted
        while not self.blocks.grow(sequence.blocks, sequence.computed + count):
            if drafted:
                count, drafted = count - drafted, 0
                continue
            victim = next((s for s in reversed(self.running) if not any(w.sequence is s for w in work)), sequence)
            self._preempt(victim)
            if victim is sequence:
                return None
        return ScheduledSequence(sequence, count, drafted)

    def _admit(self, sequence: Sequence) -> bool:
        """Take the cached blocks of a waiting sequence; False, and none taken, if its other tokens do not fit the free blocks."""
        self._hash(sequence)
        # The last token must be computed for its logits; a request that generates nothing needs the hidden states of all tokens.
        most = (len(sequence.tokens) - 1) // self.blocks.block_size if sequence.request.generates else 0
        usable = sequence.hashes[:most]
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
        """Note that `count` more tokens of a sequence have been computed, and publish the blocks that became full."""
        self.publish(sequence, sequence.computed, sequence.computed + count)
        sequence.computed += count

    def publish(self, sequence: Sequence, begin: int, end: int) -> None:
        """Publish the blocks that the tokens `begin` to `end` fill; those before `begin` have been published."""
        size = self.blocks.block_size
        if begin // size == end // size:
            return
        self._hash(sequence, end)
        for i in range(begin // size, end // size):
            self.blocks.publish(sequence.blocks[i], sequence.hashes[i])

    def _hash(self, sequence: Sequence, end: int | None = None) -> None:
        self.blocks.extend_hashes(sequence.hashes, sequence.tokens, end, sequence.request.salts)

    def finish(self, sequence: Sequence) -> None:
        """Remove a running or waiting sequence and free its blocks."""
        if sequence in self.running:
            del self.running[sequence]
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.blocks.release(sequence.blocks)

    def cancel(self, request_id: str) -> list[Sequence]:
        """Remove all sequences of a request, and return them."""
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
