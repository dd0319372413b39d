"""The GPU's step without a GPU: its plain operations and its engine."""

import pytest
import torch

from tenfold.model.llama import Llama
from tenfold.serve.engine.async_scheduling import AsyncSchedulingEngine
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.cuda import CudaRunner, Draw, keep_likely
from tenfold.serve.runners.runner import ModelInput, TorchRunner
from tenfold.spec.model import ModelSpec

SPEC = ModelSpec(
    name="small", dim=64, n_layers=3, n_heads=6, n_kv_heads=2, ffn_dim=88, vocab_size=300, head_dim=16, context=256, tied=True
)


@pytest.fixture(scope="module")
def model():
    return make_model()


def make_model():
    torch.manual_seed(0)
    made = Llama(SPEC)
    torch.nn.init.normal_(made.head.weight, std=0.3)  # so that no two logits are close
    return made


def prompt(seed, length=20):
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(engine, *requests, cancel=None):
    """Tokens by request and index."""
    tokens, reasons, steps = {}, {}, 0
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None and all(token >= 0 for token in output.tokens)
            assert (output.request_id, output.index) not in reasons
            tokens.setdefault((output.request_id, output.index), []).extend(output.tokens)
            if output.finish_reason:
                reasons[output.request_id, output.index] = output.finish_reason
        steps += 1
        if cancel and steps == cancel[1]:
            engine.cancel(cancel[0])
    assert engine.blocks.n_free == engine.blocks.n_blocks
    return tokens


def request(name, tokens, **values):
    return Request(name, tokens, Sampling(**{"temperature": 0, "max_tokens": 12, **values}))


def ahead(model, n_blocks=64, **options):
    return AsyncSchedulingEngine(CudaRunner(model, n_blocks, max_rows=8), n_blocks, SchedulerConfig(**options))


def test_hidden_states_are_the_models_own_for_any_mix_of_rows(model):
    runner, plain = CudaRunner(model, 64), TorchRunner(model, 64)
    a, b = prompt(1, 70), prompt(2, 40)
    for rows in (
        ModelInput(a[:33] + b[:17], [*range(33), *range(17)], [33, 17], [[5, 3, 9], [8, 2]]),
        ModelInput([a[33], *b[17:40]], [33, *range(17, 40)], [1, 23], [[5, 3, 9], [8, 2, 6]]),
        ModelInput([a[34], 7], [34, 40], [1, 1], [[5, 3, 9], [8, 2, 6]]),
    ):
        torch.testing.assert_close(runner.logits(runner.hidden(rows)), plain.logits(plain.hidden(rows)), rtol=1e-4, atol=1e-4)


def asked(count=8):
    ways = [{}, {"temperature": 1}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1, "top_k": 5, "seed": 3}]
    return [request(str(i), prompt(i, 9 + 11 * i), max_tokens=3 + 4 * i, **{"seed": i, **ways[i % 4]}) for i in range(count)]


def test_keys_are_split_for_any_number_of_rows(model):
    assert [CudaRunner(model, 64)._splits(rows) for rows in (1, 64, 256, 257, 512, 513)] == [16, 4, 4, 4, 4, 1]


def test_greedy_tokens_are_those_of_the_engine_that_waits(model):
    requests = [request(str(i), prompt(i, 5 + 13 * i), max_tokens=1 + 5 * i) for i in range(6)]
    expected = run(Engine(TorchRunner(model, 64), 64), *requests)
    engine = ahead(model, max_num_batched_tokens=24)
    assert run(engine, *requests) == expected
    again = run(engine, *requests)
    assert again == expected and engine.scheduler.prefix_hits > 0


@pytest.mark.parametrize("hard", ["small budget", "few blocks", "one at a time", "host draws"])
def test_the_same_draws_whatever_the_load(model, hard):
    alone = {}
    for r in asked():
        alone |= run(ahead(model), r)
    options = {"small budget": {"max_num_batched_tokens": 7}, "one at a time": {"max_num_seqs": 1}}.get(hard, {"max_num_seqs": 8})
    engine = ahead(model, 16 if hard == "few blocks" else 64, **options)
    others = [request("other", prompt(99), presence_penalty=1, max_tokens=9)] if hard == "host draws" else []
    found = run(engine, *asked(), *others)
    assert {key: tokens for key, tokens in found.items() if key[0] != "other"} == alone


def test_stop_tokens_and_cancelling_while_a_step_is_under_way(model):
    plain = run(ahead(model), request("a", prompt(1), max_tokens=30), request("b", prompt(2), max_tokens=30))
    stop = plain["a", 0][4]
    found = run(
        ahead(model),
        request("a", prompt(1), max_tokens=30, stop_tokens=frozenset({stop})),
        request("b", prompt(2), max_tokens=30),
        request("c", prompt(3), max_tokens=30),
        cancel=("c", 5),
    )
    assert found["a", 0] == plain["a", 0][: plain["a", 0].index(stop)] and found["b", 0] == plain["b", 0]
    assert len(found["c", 0]) == 4  # a fifth was on its way


def test_a_reply_fills_the_context_and_continuations_share_a_prompt(model):
    engine = ahead(model, max_model_len=64)
    found = run(engine, request("a", prompt(1, 40), temperature=1.5, seed=1, n=3, max_tokens=100))
    assert {len(tokens) for tokens in found.values()} == {24} and len({tuple(t) for t in found.values()}) == 3
    assert engine.stats()["prefix_hits"] == 2 * 32
    assert (
        run(ahead(model, max_model_len=64), request("b", prompt(1, 40), temperature=1.5, seed=3, max_tokens=100))["b", 0]
        == found["a", 2]
    )


def test_filters_keep_what_their_definition_keeps():
    logits = torch.randn(4, 50)
    ways = [Sampling(temperature=0.5, top_p=0.8), Sampling(top_k=7), Sampling(min_p=0.2), Sampling()]
    kept = keep_likely(logits, [Draw(s, 0, 0) for s in ways]) > -torch.inf
    p = (logits[0] / 0.5).softmax(-1)
    assert float(p[kept[0]].sum()) >= 0.8 > float(p[kept[0]].sum() - p[kept[0]].min())
    assert kept[0].sum() == 1 or p[kept[0]].min() >= p[~kept[0]].max()
    assert kept[1].sum() == 7 and logits[1][kept[1]].min() >= logits[1][~kept[1]].max()
    p = logits[2].softmax(-1)
    assert torch.equal(kept[2], p >= 0.2 * p.max())
    assert kept[3].all()


class Fragile(CudaRunner):
    """Fails wherever token 7 is read from the host, and where a request of seed 13 draws its sixth token."""

    def start(self, rows, chosen, draws):
        self.check(rows, draws)
        return super().start(rows, chosen, draws)

    def hidden(self, rows):
        self.check(rows, [])
        return super().hidden(rows)

    def draw(self, logits, draws):
        self.check(None, draws)
        return super().draw(logits, draws)

    def check(self, rows, draws):
        if (rows and 7 in rows.tokens) or any(d.sampling.seed == 13 and d.position >= 24 for d in draws):
            raise RuntimeError("fragile")


def test_a_request_on_which_a_step_fails_ends_alone(model):
    def ids(seed):
        return [8 if token == 7 else token for token in prompt(seed)]

    fine = [request(f"fine {i}", ids(i), max_tokens=8 + i, seed=i, temperature=i % 2) for i in range(4)]
    late = request("late", ids(9), seed=13, temperature=1)
    bad = [request("read", [*ids(5), 7]), late, request("shared", [7, *ids(6)], n=3)]
    healthy = run(ahead(model), *fine, late)
    engine = AsyncSchedulingEngine(Fragile(model, 64, max_rows=8), 64, SchedulerConfig(max_num_batched_tokens=48))
    for r in (fine[0], *bad, *fine[1:]):
        engine.add(r)
    found, errors = {}, []
    while engine.has_work:
        for output in engine.step():
            found.setdefault((output.request_id, output.index), []).extend(output.tokens)
            errors += [output.request_id] if output.error else []
    assert sorted(errors) == ["late", "read", "shared"] and engine.blocks.n_free == engine.blocks.n_blocks
    assert found.pop(("late", 0)) == healthy.pop(("late", 0))[:5]  # what it wrote before
    assert {key: tokens for key, tokens in found.items() if tokens} == healthy
