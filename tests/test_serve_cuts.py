"""Where an answer is cut, its text, tokens, log-probabilities and counts are cut alike: with and without guesses, in any batch."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from chat_models import chat_model
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models, normalizers

from tenfold.model.io.huggingface import read_model
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.api.served_model import ServedModel
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.grammar import GrammarCompiler
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.engine.speculate import Speculator
from tenfold.serve.options import EngineOptions, Limits
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.runner import TorchRunner
from tenfold.serve.sandbox.grammars import GrammarSource, GrammarTokenizer
from tenfold.serve.text import TextSide, TextStream, read_text_side


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(path):
    return read_text_side(path)


class InThisProcess:
    """A backend whose engine runs where it is asked."""

    def __init__(self, engine):
        self.engine, self.outputs = engine, {}

    async def generate(self, request):
        waiting, left = self.outputs.setdefault(request.id, []), request.sampling.n
        self.engine.add(request)
        while left:
            await asyncio.sleep(0)
            if not waiting:
                for output in self.engine.step():
                    self.outputs[output.request_id].append(output)
            for output in waiting:
                left -= output.finish_reason is not None
                yield output
            waiting.clear()


@pytest.fixture(scope="module")
def served(path, text):
    model, grammars = read_model(path, torch.float32), GrammarTokenizer(text.tokenizer.to_str(), 302, sorted(text.stop_tokens))

    def make(guesses):
        engine = Engine(TorchRunner(model, 64), 64, SchedulerConfig(), Speculator() if guesses else None, GrammarCompiler(grammars))
        return ServedModel("tiny", EngineOptions(path), text, InThisProcess(engine), Limits(), Metrics())

    return {True: make(True), False: make(False)}


async def gather(model, name, tokens, stops, **sampling):
    """Text, tokens, log-probabilities and the reason of an answer."""
    given = {"temperature": 0.0, "max_tokens": 40, "logprobs": 1, "stop_tokens": model.text.stop_tokens} | sampling
    parts, told, logprobs, reason = "", [], [], None
    async for delta in model.generate(Request(name, tokens, Sampling(**given)), stops):
        parts, told, logprobs = parts + delta.text, told + delta.tokens, logprobs + delta.logprobs
        reason = delta.finish_reason
    return parts, told, logprobs, reason


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10), st.integers(0, 38), st.integers(1, 6), st.sampled_from([0.0, 1.0]))
def test_an_answer_ends_with_the_token_that_completes_a_stop(served, seed, begin, length, temperature):
    decode = served[True].text.tokenizer.decode
    asked = {"seed": seed, "temperature": temperature}
    prompt = served[True].text.encode("What is larger? " * 3 + str(seed))

    async def answers(stops):
        alone = await gather(served[False], "alone", prompt, stops, **asked)
        both = await asyncio.gather(*(gather(served[True], f"{i}", prompt, stops, **asked) for i in range(2)))
        guessed = await gather(served[True], "guessed", prompt, stops, **asked)
        for one in (*both, guessed):
            assert (one[0], one[1], one[3]) == (alone[0], alone[1], alone[3])
            assert [lp.token for lp in one[2]] == [lp.token for lp in alone[2]]
            assert [lp.logprob for lp in one[2]] == pytest.approx([lp.logprob for lp in alone[2]], abs=1e-3)
        return alone

    whole, tokens, _, _ = asyncio.run(answers([]))
    assert whole == decode(tokens)
    stop = whole[begin : begin + length]
    if not stop or "\ufffd" in whole:
        return
    said, told, logprobs, reason = asyncio.run(answers([stop]))
    count = next(n for n in range(1, len(tokens) + 1) if stop in decode(tokens[:n]))
    assert (said, told, reason) == (whole[: whole.index(stop)], tokens[:count], "stop")
    assert [lp.token for lp in logprobs] == told


def test_each_token_of_a_grammar_and_a_stop_token_has_its_logprob(served):
    model = served[True]
    grammar = GrammarSource("regular expression", "[ab]{5}c").grammar()
    prompt = model.text.encode("hello")
    said, tokens, logprobs, reason = asyncio.run(gather(model, "g", prompt, [], grammar=grammar))
    assert reason == "stop" and len(said) == 6 and [lp.token for lp in logprobs] == tokens
    end = min(model.text.stop_tokens)
    said, tokens, logprobs, reason = asyncio.run(gather(model, "e", prompt, [], logit_bias={end: 100.0}))
    assert (said, tokens, reason) == ("", [], "stop") and [lp.token for lp in logprobs] == [end]


def pieces(text):
    """A tokenizer as SentencePiece makes it: a mark for spaces, and a token for each byte."""
    vocab = {f"<0x{b:02X}>": b for b in range(256)} | {piece: 256 + i for i, piece in enumerate(["▁", "a", "b", "▁a", "ab", "é"])}
    merges = [("▁", "a"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return TextSide(tokenizer, text.template, frozenset(), {}, [], 8)


def streamed(side, tokens, cuts):
    """The text of tokens that come in pieces, and where that of each begins."""
    stream, said, places = TextStream(side.tokenizer, []), "", []
    for begin, end in pairwise([0, *cuts, len(tokens)]):
        new, at = stream.push(tokens[begin:end])
        said, places = said + new, places + at
    assert len(places) == len(tokens) and places == sorted(places)
    return said + stream.rest(), places


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_pieces_of_any_tokens_are_what_the_tokenizer_decodes(text, data):
    tokens = data.draw(st.lists(st.integers(0, text.tokenizer.get_vocab_size() - 1), max_size=30))
    said, places = streamed(text, tokens, data.draw(st.lists(st.integers(0, len(tokens)), max_size=4).map(sorted)))
    assert said == text.tokenizer.decode(tokens)
    assert all(text.tokenizer.decode(tokens[:i]).startswith(said[:at]) for i, at in enumerate(places))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.data())
def test_a_text_that_is_cut_anywhere_says_all_that_is_whole_and_marks_what_is_not(text, written, data):
    side = pieces(text)
    tokens = side.ids(written)
    tokens = tokens[: data.draw(st.integers(0, len(tokens)))]
    said, _ = streamed(side, tokens, data.draw(st.lists(st.integers(0, len(tokens)), max_size=4).map(sorted)))
    raw = b"".join(map(side.token_bytes, tokens))[1:]  # without the space that SentencePiece puts first
    whole = raw.decode(errors="ignore")
    assert said.removeprefix(whole) == "\ufffd" * len(raw[len(whole.encode()) :])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.booleans())
def test_the_bytes_of_tokens_are_those_of_the_text(text, written, byte_level):
    side = text if byte_level else pieces(text)
    found = b"".join(side.token_bytes(token) for token in side.ids(written))
    assert found == (written if byte_level else " " + written if written else "").encode()


def test_the_bytes_of_tokens_are_those_of_another_reader(text):
    other = LLTokenizer(text.tokenizer.to_str())
    special = set(text.tokenizer.get_added_tokens_decoder())
    for token in range(text.tokenizer.get_vocab_size()):
        raw = text.token_bytes(token)
        assert token in special or b"\xff" in raw or raw == other.decode_bytes([token])  # its own mark of special tokens


@pytest.mark.parametrize("has_bos", [True, False])
def test_a_chat_without_a_template_begins_as_every_text(path, text, tmp_path, has_bos):
    (tmp_path / "m").mkdir()
    for file in Path(path).iterdir():
        if "template" not in file.name:
            (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "m" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "bos_token": "<|im_start|>", "add_bos_token": has_bos}))
    side = read_text_side(tmp_path / "m")
    begin = [text.tokenizer.token_to_id("<|im_start|>")] * has_bos
    chat, plain = side.encode_chat([{"role": "user", "content": "hi"}]), side.encode("hi")
    assert chat[: len(begin)] == plain[: len(begin)] == begin and chat[len(begin)] not in text.tokenizer.get_added_tokens_decoder()
    assert len(plain) == len(text.ids("hi")) + has_bos
