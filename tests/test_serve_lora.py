"""Adapters by name beside one model: each request has its own, as PEFT computes it, in any batch and with any prefix cached."""

import json

import peft
import pytest
import torch
from chat_models import answers, chat_model
from fastapi.testclient import TestClient
from msgspec.structs import replace
from transformers import AutoModelForCausalLM

from tenfold.model.io.huggingface import read_model
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.adapters import Adapters
from tenfold.serve.runners.runner import ModelInput, TorchRunner
from tenfold.spec.errors import TenfoldError

HELLO = [{"role": "user", "content": "hello there"}]
NAMES = ("", "sql", "poems")
TARGETS = {"sql": ["q_proj", "v_proj", "down_proj"], "poems": ["k_proj", "o_proj", "gate_proj", "up_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("lora") / "base")


@pytest.fixture(scope="module")
def adapters(base):
    """PEFT's own, of two ranks and for different matrices."""
    made = {}
    for seed, (name, targets) in enumerate(TARGETS.items()):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=3 + seed, lora_alpha=40, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        made[name] = base.parent / name
        model.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def options(base, adapters):
    return EngineOptions(
        base, kv_cache_gib=0.01, threads=1, lora_modules=tuple(f"{name}={folder}" for name, folder in adapters.items())
    )


def theirs(base, adapters, name):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapters[name]).eval() if name else model.eval()


def prompt(seed, length):
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def scored(name, tokens, adapter):
    return Request(name, tokens, Sampling(logprobs=0), "score", adapter=adapter)


@torch.no_grad()
def test_each_request_of_a_batch_has_the_adapter_that_it_names(base, adapters, options):
    engine = make_engine(options)
    asked = [scored(f"{name}-{seed}", prompt(seed, 20 + 30 * seed), name) for seed in range(3) for name in (*NAMES, "sql")[seed:]]
    found = answers(engine, asked)
    for request in asked:
        tokens = torch.tensor([request.tokens])
        expected = theirs(base, adapters, request.adapter)(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
        got = torch.tensor([one.logprob for one in found[request.id][-1].scores])
        torch.testing.assert_close(got, expected[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_cache_of_one_adapter_is_not_anothers(base, adapters, options):
    """The same prompt, longer than a block, asked for under each name twice: found again, and answered as by PEFT, greedily."""
    engine, tokens = make_engine(options), prompt(9, 70)
    for again in (False, True):
        for name in NAMES:
            outputs = answers(engine, [Request("r", tokens, Sampling(temperature=0, max_tokens=8), adapter=name)])["r"]
            assert bool(outputs[0].cached_tokens) == again
            expected = theirs(base, adapters, name).generate(
                torch.tensor([tokens]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            assert [token for output in outputs for token in output.tokens] == expected[0, 70:].tolist()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_beside_weights_of_few_bits_an_adapter_by_name_is_that_of_all_requests(options, adapters, quantization):
    few, tokens = replace(options, quantization=quantization), prompt(5, 40)
    alone = make_engine(replace(few, lora_modules=(), adapter=adapters["sql"]))
    one = answers(alone, [scored("r", tokens, "")])["r"][0].scores
    other = answers(make_engine(few), [scored("r", tokens, "sql")])["r"][0].scores
    assert [s.logprob for s in one] == pytest.approx([s.logprob for s in other], abs=1e-5)


def test_adapters_have_the_models_format_where_it_is_bfloat16(base, adapters):
    model, tokens = read_model(base, torch.bfloat16), prompt(5, 16)
    runner = TorchRunner(model, 4, Adapters(model, adapters))
    plain, adapted = (runner.hidden(ModelInput(tokens, [*range(16)], [16], [[0]], adapters=[name])) for name in ("", "sql"))
    assert adapted.dtype == torch.bfloat16 and not torch.equal(plain, adapted)


@pytest.fixture(scope="module")
def client(base, options):
    app = make_app(Models({"tiny": options}, ServerOptions().limits), ServerOptions())
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def test_a_request_asks_for_an_adapter_by_the_name_of_the_model(client, base):
    listed = client.get("/v1/models").json()["data"]
    assert [(one["id"], one.get("parent")) for one in listed] == [("tiny", None), ("sql", "tiny"), ("poems", "tiny")]
    assert client.get("/v1/models/sql").json()["parent"] == "tiny"
    said = {}
    for name in ("tiny", "sql", "poems"):
        answer = client.post("/v1/chat/completions", json={"model": name, "messages": HELLO, "temperature": 0, "max_tokens": 20})
        assert answer.json()["model"] == name
        said[name] = answer.json()["choices"][0]["message"]["content"]
    assert len(set(said.values())) == 3
    vectors = [
        client.post("/v1/embeddings", json={"model": name, "input": "Hello"}).json()["data"][0]["embedding"] for name in said
    ]
    assert vectors[0] != vectors[1] != vectors[2]
    unknown = client.post("/v1/chat/completions", json={"model": "songs", "messages": HELLO})
    assert unknown.status_code == 404 and "tiny, sql, poems" in unknown.json()["error"]["message"]
    refused = client.post("/v1/models/swap", json={"model": "sql", "path": str(base)})
    assert refused.status_code == 400 and "'tiny'" in refused.json()["error"]["message"]


def test_a_model_that_is_swapped_has_no_adapters_of_the_one_before(options, base):
    app = make_app(Models({"tiny": options}, ServerOptions().limits), ServerOptions())
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        assert client.post("/v1/models/swap", json={"model": "tiny", "path": str(base)}).status_code == 200
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny"]
        assert client.post("/v1/chat/completions", json={"model": "sql", "messages": HELLO}).status_code == 404


def test_answers_of_adapters_are_kept_under_their_own_checkpoints(client):
    models = client.app.state.models

    async def checkpoints():
        return [await (await models.get(name)).checkpoint() for name in ("tiny", "sql", "poems", "sql")]

    tiny, sql, poems, again = client.portal.call(checkpoints)
    assert len({tiny, sql, poems}) == 3 and sql == again


@pytest.mark.parametrize(
    "given, told",
    [(("sql",), "NAME=FOLDER"), (("=x",), "NAME=FOLDER"), (("a=x", "a=y"), "the same name"), (("tiny=x",), "need different names")],
)
def test_adapters_that_cannot_be_named_are_a_sentence(base, given, told):
    with pytest.raises(TenfoldError, match=told):
        Models({"tiny": EngineOptions(base, lora_modules=given)}, ServerOptions().limits)


def test_an_adapter_of_another_model_is_a_sentence(options, adapters, tmp_path):
    other = chat_model(tmp_path / "other", dim=64)
    with pytest.raises(TenfoldError, match="made for another model"):
        make_engine(EngineOptions(other, kv_cache_gib=0.01, threads=1, lora_modules=options.lora_modules))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(TenfoldError, match="is not a PEFT adapter"):
        make_engine(EngineOptions(other, kv_cache_gib=0.01, threads=1, lora_modules=(f"a={tmp_path / 'empty'}",)))
