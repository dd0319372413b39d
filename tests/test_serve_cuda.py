"""The GPU's step without a GPU: its plain operations, its engine, and its kernels under Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tenfold.model.llama import Llama
from tenfold.serve.ahead import AheadEngine
from tenfold.serve.cuda import CudaRunner, Draw, keep_likely
from tenfold.serve.engine import Engine
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runner import Rows, TorchRunner
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
    return AheadEngine(CudaRunner(model, n_blocks, max_rows=8), n_blocks, **options)


def test_hidden_states_are_the_models_own_for_any_mix_of_rows(model):
    runner, plain = CudaRunner(model, 64), TorchRunner(model, 64)
    a, b = prompt(1, 70), prompt(2, 40)
    for rows in (
        Rows(a[:33] + b[:17], [*range(33), *range(17)], [33, 17], [[5, 3, 9], [8, 2]]),
        Rows([a[33], *b[17:40]], [33, *range(17, 40)], [1, 23], [[5, 3, 9], [8, 2, 6]]),
        Rows([a[34], 7], [34, 40], [1, 1], [[5, 3, 9], [8, 2, 6]]),
    ):
        torch.testing.assert_close(runner.logits(runner.hidden(rows)), plain.logits(plain.hidden(rows)), rtol=1e-4, atol=1e-4)


def asked(count=8):
    ways = [{}, {"temperature": 1}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1, "top_k": 5, "seed": 3}]
    return [request(str(i), prompt(i, 9 + 11 * i), max_tokens=3 + 4 * i, **{"seed": i, **ways[i % 4]}) for i in range(count)]


def test_greedy_tokens_are_those_of_the_engine_that_waits(model):
    requests = [request(str(i), prompt(i, 5 + 13 * i), max_tokens=1 + 5 * i) for i in range(6)]
    expected = run(Engine(TorchRunner(model, 64), 64), *requests)
    engine = ahead(model, token_budget=24)
    assert run(engine, *requests) == expected
    again = run(engine, *requests)
    assert again == expected and engine.scheduler.prefix_hits > 0


@pytest.mark.parametrize("hard", ["small budget", "few blocks", "one at a time", "host draws"])
def test_the_same_draws_whatever_the_load(model, hard):
    alone = {}
    for r in asked():
        alone |= run(ahead(model), r)
    options = {"small budget": {"token_budget": 7}, "one at a time": {"max_running": 1}}.get(hard, {"max_running": 8})
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
    engine = ahead(model, context=64)
    found = run(engine, request("a", prompt(1, 40), temperature=1.5, seed=1, n=3, max_tokens=100))
    assert {len(tokens) for tokens in found.values()} == {24} and len({tuple(t) for t in found.values()}) == 3
    assert engine.stats()["prefix_hits"] == 2 * 32
    assert run(ahead(model, context=64), request("b", prompt(1, 40), temperature=1.5, seed=3, max_tokens=100))["b", 0] == found["a", 2]


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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_kernels_compute_what_the_plain_operations_compute():
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-600:]


def check_kernels():
    from triton.runtime import interpreter

    from tenfold.serve import kernels, paged

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):  # numpy 2.4 no longer turns an array of one element into an integer
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    torch.manual_seed(0)
    device = torch.device("cpu")
    near = {"rtol": 1e-4, "atol": 1e-4}
    spec, runner = SPEC, CudaRunner(make_model(), 20, max_rows=4)
    keys, values = torch.randn(2, 20, 2, 16, 16)
    for rows in (
        Rows([5, 6, 7], [99, 0, 40], [1, 1, 1], [[3, 5, 7, 9, 11, 13, 15], [2], [1, 4, 6]]),
        Rows([*range(30)], [*range(20, 40), *range(9), 50], [20, 9, 1], [[3, 5, 7], [2], [1, 4, 6, 8]]),
    ):
        batch, _, _ = runner._batch(rows, [])
        q, qkv, n = torch.randn(len(rows.tokens), 6, 16), torch.randn(len(rows.tokens), 2, 5, 16), len(rows.tokens)
        for batch.splits in (1, 4):
            torch.testing.assert_close(kernels.attention(q, keys, values, batch), paged.attention(q, keys, values, batch), **near)
        ours, theirs = (keys.clone(), values.clone()), (keys.clone(), values.clone())
        torch.testing.assert_close(
            kernels.turn_and_store(qkv, runner.rope, batch, *ours), paged.turn_and_store(qkv, runner.rope, batch, *theirs), **near
        )
        torch.testing.assert_close(ours, theirs, **near)
        batch.tokens[1] = -3
        drawn = torch.tensor([1, 2, 3], dtype=torch.int32)
        assert torch.equal(kernels.embed(batch, drawn, runner.embedding), paged.embed(batch, drawn, runner.embedding))
        x, added = torch.randn(2, n, spec.dim)
        weight = torch.randn(spec.dim)
        for more in (None, added):
            torch.testing.assert_close(kernels.norm(x, weight, 1e-5, more), paged.norm(x, weight, 1e-5, more), **near)
        h = torch.randn(n, 2 * 1100)
        torch.testing.assert_close(kernels.gate(h), paged.gate(h), **near)
    # Padding neither writes nor yields anything that is not a number.
    batch, _, _ = runner._views(torch.from_numpy(runner._pack(Rows([5], [17], [1], [[3, 5]]), [], 4, None)), 4, 4, 1)
    ours = keys.clone(), values.clone()
    kernels.turn_and_store(torch.randn(4, 2, 5, 16), runner.rope, batch, *ours)
    assert int((ours[0] != keys).any(-1).sum()) == 2  # one token of two heads
    assert kernels.attention(torch.randn(4, 6, 16), *ours, batch)[1:].abs().max() == 0
    # A whole step of one row.
    fused = CudaRunner(make_model(), 20, max_rows=4)
    fused.ops, fused.fused = kernels, True
    fused.cache.normal_()
    runner.cache.copy_(fused.cache)
    for token, position in ((5, 37), (-1, 38)):
        rows = Rows([token], [position], [1], [[3, 5, 7]])
        found = [r.logits(r.hidden(rows)) for r in (fused, runner)]
        torch.testing.assert_close(*found, **near)
    torch.testing.assert_close(fused.cache, runner.cache, **near)
    # Draws: the likeliest, or the frequencies of the softmax, the same for the same seed and position.
    logits = torch.randn(3, 9000)
    zeros = torch.zeros(3, dtype=torch.int32, device=device)
    assert torch.equal(kernels.draw(logits, zeros, zeros, torch.zeros(3)).long(), logits.argmax(-1))
    few = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(600, 1)
    seeds = torch.arange(600, dtype=torch.int32)
    for temperature in (1.0, 0.5):
        drawn = kernels.draw(few, seeds % 50, seeds // 50, torch.full((600,), temperature))
        share = torch.bincount(drawn.long(), minlength=4) / 600
        assert float((share - (few[0] / temperature).softmax(-1)).abs().max()) < 0.08
        assert torch.equal(drawn, kernels.draw(few, seeds % 50, seeds // 50, torch.full((600,), temperature)))


if __name__ == "__main__":
    check_kernels()
