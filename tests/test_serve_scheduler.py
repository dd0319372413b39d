"""Blocks and turns without a model: nothing is lost, nothing is owned twice, everyone is answered."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.scheduler import Scheduler, SchedulerConfig
from tenfold.serve.request import MAX_LOGPROBS, Request, Sampling, Sequence

SIZE = 4


def sequence(name, prompt, answer=8, owner=""):
    return Sequence(Request(name, list(prompt), Sampling(max_tokens=answer), owner=owner))


def scheduler(n_blocks=32, budget=16, running=8):
    return Scheduler(BlockManager(n_blocks, SIZE), SchedulerConfig(budget, max_num_seqs=running))


def run_step(s, token=lambda seq: len(seq.tokens) % 7):
    """What the engine does with a step, without a model."""
    work = s.step()
    for w in work:
        seq = w.sequence
        whole = seq.computed + w.count >= len(seq.tokens)
        s.computed(seq, w.count)
        if whole:
            seq.tokens.append(token(seq))
            if seq.n_output >= seq.request.sampling.max_tokens:
                s.finish(seq)
    return work


def check(s):
    """Every block is free or owned, as often as its references say, and holds the tokens that its hash says."""
    owned = [b for seq in (*s.running, *s.waiting) for b in seq.blocks]
    manager = s.blocks
    for block in range(manager.n_blocks):
        assert manager._references[block] == owned.count(block)
        assert (block in manager._unused) == (block not in owned)
    assert all(not seq.blocks for seq in s.waiting)
    for seq in s.running:
        assert seq.computed <= len(seq.blocks) * SIZE
    assert {b: h for h, b in manager._by_hash.items()} == manager._hash_of


requests = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(requests, st.integers(13, 40), st.integers(2, 24), st.integers(1, 6), st.randoms(use_true_random=False))
def test_everyone_is_answered_and_every_block_comes_back(asked, n_blocks, budget, running, chance):
    s = scheduler(n_blocks, budget, running)
    # Few kinds of prompts, so that prefixes are shared.
    todo = [sequence(str(i), [0] * n if same else range(n), answer) for i, (n, answer, same) in enumerate(asked)]
    gone = set()
    for _ in range(5000):
        if todo and chance.random() < 0.4:
            s.add(todo.pop())
        if not s.has_work and not todo:
            break
        work = run_step(s)
        assert sum(w.count for w in work) <= budget
        assert len(s.running) <= running
        check(s)
        if chance.random() < 0.05 and s.running:
            name = chance.choice(list(s.running)).request.id
            gone.add(name)
            s.cancel(name)
            check(s)
    assert not s.has_work and not todo
    assert s.blocks.n_free == n_blocks


def test_replies_go_before_prompts_so_that_a_long_prompt_stalls_nobody():
    s = scheduler(n_blocks=64, budget=8)
    s.add(sequence("talks", range(4), 50))
    run_step(s)
    s.add(sequence("long", range(100), 2))
    for _ in range(5):
        counts = {w.sequence.request.id: w.count for w in run_step(s)}
        assert counts == {"talks": 1, "long": 7}


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_owners_who_always_wait_are_served_alike(running, prompt, answer, seed):
    chance = random.Random(seed)
    s, served = scheduler(n_blocks=400, budget=24, running=running), dict.fromkeys("ab", 0)

    def asks(owner, count):
        for _ in range(count):
            tokens = [chance.randrange(100) for _ in range(chance.randint(1, prompt if owner == "a" else 10))]
            s.add(sequence(f"{owner}{chance.random()}", tokens, chance.randint(1, answer if owner == "b" else 10), owner))

    asks("a", 40)
    for step in range(3000):
        if step == 200:  # b comes later, and has saved up nothing
            asks("b", running)
            served = dict.fromkeys("ab", 0)
        for w in run_step(s):
            served[w.sequence.request.owner] += w.count
        for owner, least in (("a", 40), ("b", running)):
            here = sum(q.request.owner == owner for q in (*s.running, *s.waiting))
            if step >= 200 or owner == "a":
                asks(owner, max(0, least - here))
    assert served["a"] == pytest.approx(served["b"], rel=0.1)


def test_a_short_prompt_does_not_wait_for_the_long_ones_of_another():
    s = scheduler(n_blocks=400, budget=8)
    for i in range(3):
        s.add(sequence(f"long{i}", range(1000 * i, 1000 * i + 300), 1, "many"))
    for _ in range(4):
        run_step(s)
    s.add(sequence("short", range(5000, 5006), 1, "one"))
    assert any(w.sequence.request.id == "short" for _ in range(3) for w in run_step(s))


def test_a_second_request_finds_the_first_ones_prompt():
    s = scheduler()
    first = sequence("first", range(10), 1)
    s.add(first)
    run_step(s)
    again = sequence("again", range(12), 1)
    s.add(again)
    (work,) = s.step()
    assert work.count == 4 and again.cached_tokens == 8


def test_one_token_is_always_computed():
    s = scheduler()
    for name in ("first", "again"):
        s.add(sequence(name, range(8), 1))
        (work,) = run_step(s)
        assert work.count == (8 if name == "first" else 4)


def test_equal_blocks_after_unequal_ones_are_not_shared():
    blocks, a, b = BlockManager(4, SIZE), [], []
    blocks.extend_hashes(a, [1, 1, 1, 1, 5, 5, 5, 5])
    blocks.extend_hashes(b, [2, 2, 2, 2, 5, 5, 5, 5])
    assert not set(a) & set(b)


def test_the_latest_to_come_loses_its_blocks_and_is_answered_later():
    s = scheduler(n_blocks=6, budget=32)
    old, new = sequence("old", range(8), 12), sequence("new", range(100, 108), 12)
    s.add(old)
    s.add(new)
    for _ in range(100):
        run_step(s)
        check(s)
        if not s.has_work:
            break
    assert old.preemptions == 0 and new.preemptions >= 1
    assert old.n_output == new.n_output == 12


def test_cancelling_frees_the_blocks_at_once():
    s = scheduler()
    for i in range(5):
        s.add(sequence("gone" if i % 2 else "stays", random.Random(i).sample(range(100), 9), 50))
    run_step(s)
    run_step(s)
    s.cancel("gone")
    check(s)
    s.cancel("stays")
    assert s.blocks.n_free == s.blocks.n_blocks


@pytest.mark.parametrize(
    "value", [{"temperature": -1}, {"top_p": 1.5}, {"n": 0}, {"logprobs": MAX_LOGPROBS + 1}, {"temperature": float("nan")}]
)
def test_sampling_out_of_range_is_one_sentence(value):
    from tenfold.spec.errors import TenfoldError

    with pytest.raises(TenfoldError, match=r"^[A-Z a-z_0-9].*\.$"):
        Sampling(**value)


def test_a_step_is_longer_only_while_nobody_is_being_answered():
    s = Scheduler(BlockManager(64, SIZE), SchedulerConfig(8, max_num_prompt_tokens=20, max_num_seqs=4))
    s.add(sequence("a", range(30), answer=3))
    assert [sum(w.count for w in run_step(s)) for _ in range(2)] == [20, 10]
    s.add(sequence("b", range(100, 130), answer=1))
    assert [sum(w.count for w in run_step(s)) for _ in range(2)] == [8, 8]  # a's reply and a piece of b
    assert sum(w.count for w in run_step(s)) == 16  # a has its answer, so the rest of b goes at once
