"""What strangers wrote, in real processes: it may end the process that reads it, and nothing else."""

import asyncio
import json
import random
import threading
import urllib.error
import urllib.request
from dataclasses import replace

import psutil
import pytest
import torch
from chat_models import TEMPLATE, chat_model

from bench.serve.hostile import lasting, summary, trial
from bench.serve.server import serving
from tenfold.model.io.huggingface import read_model
from tenfold.serve.api.models import load_model
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.grammar import GrammarCompiler
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.runner import TorchRunner
from tenfold.serve.sandbox.grammars import GrammarSource, GrammarTokenizer
from tenfold.serve.sandbox.sandbox import Sandbox, check_template
from tenfold.serve.text import TextStream, read_text_side
from tenfold.spec.errors import TenfoldError

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
RULES = {
    "rules": ("grammar", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "a"'),
    "terminals": ("grammar", "start: R0\n" + "".join(f"R{i}: R{i + 1}\n" for i in range(3000)) + 'R3000: "a"'),
    "references": ("JSON schema", json.dumps({"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(6000)}})),
    "many references": ("JSON schema", json.dumps({"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(20_000)}})),
    "objects": (
        "JSON schema",
        json.dumps({"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"properties": {"a": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(4000)}}),
    ),
    "parentheses": ("regular expression", "(" * 20_000 + "a" + ")" * 20_000),
    "nonsense": ("grammar", "start: | ("),
}  # fmt: skip
TEMPLATES = {
    "a loop": (LOOP, "takes too long"),
    "memory": ("{{ 'a' * 3000000000 }}", "Memory"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "Python": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a mistake": ("{% for", "template"),
    "much text": ("{% for a in range(999) %}{{ 'a' * 99999 }}{% endfor %}", "writes too much"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(path):
    return read_text_side(path)


def test_no_grammar_ends_more_than_its_own_process_and_what_is_proven_compiles(text):
    compiler = GrammarCompiler(GrammarTokenizer(text.tokenizer.to_str(), text.tokenizer.get_vocab_size(), []))
    fine = (
        GrammarSource("regular expression", "[ab]{3}"),
        GrammarSource.of_schema({"type": "object", "properties": {"a": {"enum": [1]}}}),
    )

    async def run():
        sandbox = Sandbox(text)
        try:
            for kind, written in RULES.values():
                with pytest.raises(TenfoldError, match=f"The {kind} cannot be used: .*\\.$"):
                    await sandbox.prove(GrammarSource(kind, written))
                for source in fine:
                    assert not compiler.compile(await sandbox.prove(source)).result(60).is_error()
        finally:
            await sandbox.stop()

    asyncio.run(run())


@pytest.mark.parametrize("what", TEMPLATES)
def test_no_template_takes_more_than_it_may(text, what):
    template, words = TEMPLATES[what]
    with pytest.raises(TenfoldError, match=words):
        asyncio.run(check_template(replace(text, template=template)))


def test_a_template_is_rendered_as_in_this_process_and_may_refuse(text):
    odd = [{"role": "user", "content": "\ud800 \u202e {{ 1 }} " * 9}, {"role": "tool", "content": [{"text": None}], "n": 1.5}]
    refusing = replace(text, template="{{ raise_exception('no') }}")

    async def run():
        sandbox = Sandbox(text)
        try:
            assert await sandbox.render(odd) == text.render(odd)
            assert await sandbox.render(HELLO, {"tools": [{"a": 1}], "add_generation_prompt": False}) == text.render(
                HELLO, [{"a": 1}], add_generation_prompt=False
            )
        finally:
            await sandbox.stop()
        await check_template(refusing)
        marked = replace(text, template="{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
        assert marked.render(HELLO) == "hello"

    asyncio.run(run())


def test_whoever_leaves_costs_the_next_nothing(text):
    async def run():
        sandbox = Sandbox(text)
        try:
            gone = [asyncio.create_task(sandbox.render([{"role": "user", "content": str(i)}])) for i in range(20)]
            await asyncio.sleep(0.01)
            for task in gone:
                task.cancel()
            assert [await sandbox.render([{"role": "user", "content": c}]) for c in "xy"] == [
                text.render([{"role": "user", "content": c}]) for c in "xy"
            ]
        finally:
            await sandbox.stop()

    asyncio.run(run())


class Fragile(TorchRunner):
    """Fails wherever token 7 is read."""

    def hidden(self, rows):
        if 7 in rows.tokens:
            raise RuntimeError("token 7")
        return super().hidden(rows)


def answers(engine, *requests):
    for request in requests:
        engine.add(request)
    found, errors = {}, {}
    while engine.has_work:
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.tokens)
            if output.error:
                errors[output.request_id] = output.error
    assert engine.blocks.n_free == engine.blocks.n_blocks
    return found, errors


def test_a_request_that_fails_ends_alone(path, text):
    model = read_model(path, torch.float32)
    size = model.spec.vocab_size
    engine = Engine(Fragile(model, 64), 64, grammars=GrammarCompiler(GrammarTokenizer(text.tokenizer.to_str(), size, [])))
    greedy = Sampling(temperature=0, max_tokens=6, logit_bias={7: -100.0})
    fine = [Request(f"fine {i}", [10 + i, 20, 30, 40 + i], greedy) for i in range(4)]
    alone = answers(engine, *fine)[0]
    bad = {
        "fails": Request("fails", [5, 7], replace(greedy, n=3)),
        "scores": Request("scores", [5, 7, 8], task="score"),
        "embeds": Request("embeds", [7], task="embed"),
        "outside": Request("outside", [3, size], greedy),
        "below": Request("below", [-1], greedy),
        "far": Request("far", [2**40] * 50, greedy),
        "bias": Request("bias", [3], replace(greedy, logit_bias={size: 5.0})),
        "stop": Request("stop", [3], replace(greedy, stop_tokens=frozenset({size}), min_tokens=2)),
        "grammar": Request("grammar", [3], replace(greedy, grammar="start: | (")),
        "in the middle": Request("in the middle", [3], replace(greedy, grammar='start: "\x00\x01" /[^\\x00-\\xff]/', n=2)),
    }
    found, errors = answers(engine, fine[0], *list(bad.values())[:5], *fine[1:3], *list(bad.values())[5:], fine[3])
    assert {name: found[name] for name in alone} == alone
    assert set(errors) == set(bad) and all(said.endswith(".") for said in errors.values())
    assert answers(engine, *fine)[0] == alone


def test_text_is_held_back_as_long_as_it_may_begin_a_stop(text):
    for seed in range(300):
        r = random.Random(seed)
        written, said = "".join(r.choices("ab", k=40)), ""
        stops = ["".join(r.choices("ab", k=r.randrange(1, 9))) for _ in range(2)]
        stream, read = TextStream(text.tokenizer, stops), ""
        for token in text.tokenizer.encode(written).ids:
            read += text.tokenizer.decode([token])
            said += stream.push([token])[0]
            found = [read.find(stop) for stop in stops if stop in read]
            if found:
                assert stream.stopped and said == read[: min(found)]
                break
            held = [n for stop in stops for n in range(len(stop)) if read.endswith(stop[:n])]
            assert not stream.stopped and said == read[: len(read) - max(held)]
        else:
            assert said + stream.rest() == written


@pytest.fixture(scope="module")
def server(path, tmp_path_factory):
    """The URL of a server, its process and what it printed; its template loops for whoever says so."""
    home = tmp_path_factory.mktemp("server")
    (path / "chat_template.jinja").write_text("{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}" + TEMPLATE)
    asked = ("--kv-cache-gib", "0.05", "--threads", "1", "--feedback", "")
    with serving(path, *asked, log=home / "log") as (url, process):
        yield url, process, home / "log"
        (path / "chat_template.jinja").write_text(TEMPLATE)


def ask(server, body, path="/v1/chat/completions"):
    body = {"messages": HELLO, "max_tokens": 4, **body} if "chat" in path else body
    request = urllib.request.Request(server[0] + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        return 200, json.loads(urllib.request.urlopen(request, timeout=200).read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_server_outlives_every_grammar_and_template(server):
    before = lasting(server[1].pid)
    assert len(before) >= 2  # it and its engine
    fields = {"grammar": "guided_grammar", "regular expression": "guided_regex"}
    for kind, written in RULES.values():
        form = (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": json.loads(written)}} if kind == "JSON schema" else None
        )
        status, answer = ask(server, {"response_format": form} if form else {fields[kind]: written})
        assert (status, f"The {kind} cannot be used" in answer["error"]["message"]) == (400, True)
    loops = [threading.Thread(target=ask, args=(server, {"messages": [{"role": "user", "content": "loop"}]})) for _ in range(3)]
    for thread in loops:
        thread.start()
    assert ask(server, {"prompt": "hello", "max_tokens": 2}, "/v1/completions")[0] == 200
    for thread in loops:
        thread.join()
    status, answer = ask(server, {"messages": [{"role": "user", "content": "loop"}]})
    assert (status, "takes too long" in answer["error"]["message"]) == (400, True)
    assert ask(server, {})[0] == 200 and ask(server, {"guided_regex": "[ab]{3}"})[0] == 200
    assert lasting(server[1].pid) == before and "Traceback" not in server[2].read_text()


def test_hostile_requests_are_answered_and_lose_nothing(server):
    before = lasting(server[1].pid)
    seen = asyncio.run(trial(server[0], requests=42, attackers=2, clients=2, calm=1))
    assert not seen.faults and sum(seen.statuses.values()) == 42 and not seen.refused, seen.faults
    assert summary(seen)["statuses"].get("400", 0) > 20
    assert lasting(server[1].pid) == before and "Traceback" not in server[2].read_text()


@pytest.mark.slow
def test_many_hostile_requests_are_answered_and_lose_nothing(server):
    before = lasting(server[1].pid)
    seen = asyncio.run(trial(server[0], requests=700, attackers=4, clients=8, calm=5))
    assert not seen.faults and sum(seen.statuses.values()) == 700, seen.faults
    assert lasting(server[1].pid) == before and "Traceback" not in server[2].read_text()
    assert sum(p.memory_info().rss for p in psutil.Process(server[1].pid).children()) < 4 * 2**30


@pytest.mark.parametrize("fault", ["a token beyond", "a template"])
def test_a_model_that_cannot_be_served_is_refused_when_it_is_loaded(tmp_path, fault):
    model = chat_model(tmp_path / "odd", template=LOOP if fault == "a template" else TEMPLATE)
    if fault == "a token beyond":
        tokenizer = read_text_side(model).tokenizer
        tokenizer.add_special_tokens(["<|extra|>"])
        tokenizer.save(str(model / "tokenizer.json"))
    words = {"a template": "chat template failed", "a token beyond": "extra.* has no row in the model"}[fault]
    with pytest.raises(TenfoldError, match=words):
        asyncio.run(load_model(EngineOptions(model, kv_cache_gib=0.05, enforce_eager=True)))
