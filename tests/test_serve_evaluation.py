"""Evaluation by lm_eval's own clients gives what lm_eval's own `hf` gives on the same weights."""

import json
import urllib.request
from itertools import pairwise

import pytest
import torch
from chat_models import chat_model

from bench.serve.server import serving

CASES = [
    ("The capital of Peru is", " Lima."), ("What is 3 + 4?", " Reply with the number alone."), ("Which", " number is larger?"),
    ("Hello there,", " how are you?"), ("Reply", " x"), ("The", " capital of Peru is Lima. The capital"),
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def url(path):
    with serving(path, "--kv-cache-gib", "0.05", "--threads", "1", "--feedback", "") as (url, _):
        yield url


def post(url, body):
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def likeliest(reference):
    """Cases whose continuation is the token that the model finds likeliest."""
    tokenizer = reference.tokenizer
    for context, _ in CASES:
        tokens = tokenizer(context, add_special_tokens=False).input_ids
        best = int(reference.model(torch.tensor([tokens])).logits[0, -1].argmax())
        if tokenizer(context + tokenizer.decode([best]), add_special_tokens=False).input_ids == [*tokens, best]:
            yield context, tokenizer.decode([best])


def test_lm_eval_scores_as_it_does_itself(url, path):
    pytest.importorskip("tenacity")  # of lm-eval[api]
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    reference = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=1, add_bos_token=False)
    served = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model="tiny", tokenizer=str(path), tokenizer_backend="huggingface", batch_size=3
    )
    asked = [Instance("loglikelihood", {}, case, i) for i, case in enumerate([*CASES, *likeliest(reference)])]
    expected, found = reference.loglikelihood(asked), served.loglikelihood(asked)
    assert [good for _, good in found] == [good for _, good in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert {good for _, good in found} == {True, False}


def test_lm_eval_chats_as_it_does_itself(url, path):
    pytest.importorskip("tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalChatCompletion

    reference = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=1, add_bos_token=False)
    served = LocalChatCompletion(base_url=f"{url}/v1/chat/completions", model="tiny")
    chats = [[{"role": "user", "content": question}] for question, _ in CASES]
    chats.append([{"role": "system", "content": "Be brief."}, *chats[0]])
    options = {"until": ["?"], "max_gen_toks": 12, "do_sample": False, "temperature": 0}
    expected = reference.generate_until(
        [Instance("generate_until", {}, (reference.apply_chat_template(chat), dict(options)), i) for i, chat in enumerate(chats)]
    )
    found = served.generate_until(
        [Instance("generate_until", {}, (JsonChatStr(json.dumps(chat)), dict(options)), i) for i, chat in enumerate(chats)]
    )
    assert found == expected and any(expected)


def test_an_echo_has_the_log_probabilities_of_the_prompt_and_places_in_the_text(url):
    body = {"prompt": "Hello there, how", "max_tokens": 4, "logprobs": 3, "echo": True, "temperature": 0}
    answer = post(url, body)
    (choice,), usage = answer["choices"], answer["usage"]
    told = choice["logprobs"]
    assert len({len(values) for values in told.values()}) == 1
    assert len(told["tokens"]) >= usage["total_tokens"] and choice["text"].startswith("Hello there, how")
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert all(
        value == tops[token]
        for token, value, tops in list(zip(*(told[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True))[1:]
    )
    n, places = usage["prompt_tokens"], [*told["text_offset"], len(choice["text"])]
    said = [choice["text"][begin:end] for begin, end in pairwise(places)]
    assert n > 5 and [s for s in said[:n] if s] == [t for t in told["tokens"][:n] if not t.startswith("<|")]

    only = post(url, {**body, "max_tokens": 0})["choices"][0]
    assert only["text"] == "Hello there, how" and only["logprobs"] == {key: values[:n] for key, values in told.items()}
    tokens = [int(t) for t in tokens_of(url, "Hello there, how")]
    assert post(url, {**body, "prompt": tokens})["choices"][0]["logprobs"] == told
    beside = post(url, {**body, "echo": False, "prompt_logprobs": 1})["choices"][0]["prompt_logprobs"]
    assert beside[0] is None
    assert [entry[str(token)]["logprob"] for token, entry in zip(tokens[1:], beside[1:], strict=True)] == told["token_logprobs"][
        1:n
    ]


def tokens_of(url, text):
    request = urllib.request.Request(f"{url}/tokenize", json.dumps({"prompt": text}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["tokens"]


@pytest.mark.parametrize("echo", [True, False])
def test_a_stream_adds_up_to_the_whole_answer(url, echo):
    body = {"prompt": ["Hello there", "The"], "max_tokens": 5, "logprobs": 2, "echo": echo, "temperature": 0, "n": 2, "seed": 1}
    whole = post(url, body)["choices"]
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps({**body, "stream": True}).encode(), {"content-type": "application/json"}
    )
    found = [{"text": "", "logprobs": {key: [] for key in whole[0]["logprobs"]}, "finish_reason": None} for _ in whole]
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer.read().decode().splitlines():
            for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
                gathered = found[choice["index"]]
                gathered["text"] += choice["text"]
                gathered["finish_reason"] = choice["finish_reason"] or gathered["finish_reason"]
                for key, values in (choice["logprobs"] or {}).items():
                    gathered["logprobs"][key] += values
    assert [{"index": i, **one} for i, one in enumerate(found)] == whole
