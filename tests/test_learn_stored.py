"""Learning from answers that a server drew and kept: what is kept, what it weighs, and what is refused."""

import json
import math
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import torch
from chat_models import chat_model
from hypothesis import given
from hypothesis import strategies as st

from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.lineage import holders
from tenfold.learn.options import GRPOOptions, RewardSource, TuneSettings
from tenfold.learn.sampler import draw
from tenfold.learn.stored import advantages, read_stored
from tenfold.learn.tune import tune_on_rewards
from tenfold.model.io.huggingface import read_model
from tenfold.model.log_probs import target_log_probs
from tenfold.serve.engine import sampling
from tenfold.serve.feedback.feedback import Feedback, responses
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Sampling
from tenfold.serve.start import serving
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task

SETTINGS = TuneSettings(steps=30, seq_len=48, batch_size=32, learning_rate=1e-3, max_epochs=99)
OPTIONS = GRPOOptions(max_completion_length=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("stored") / "tiny")


@pytest.fixture(scope="module")
def rows(model):
    """Answers of the model at temperature 1.2, worth the share of even tokens: what another policy has drawn."""
    network, encoder = read_model(model), ChatEncoder.of(model)
    prompts = [[{"role": "user", "content": f"Hello {i}"}] for i in range(20)]
    how = Sampling(temperature=1.2, max_tokens=8, n=6, stop_tokens=encoder.vocabulary.stop_tokens)
    drawn = draw(network, [encoder.prompt(p) for p in prompts], how, seed=1)
    return [
        {
            "prompt": prompt, "token_ids": one.tokens, "logprobs": one.log_probs, "reward": even(one.tokens),
        }
        for prompt, group in zip(prompts, drawn, strict=True)
        for one in group
    ]  # fmt: skip


def even(tokens):
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def steps(directory):
    return [row for row in read_metrics(directory / "run.jsonl") if row["event"] == "step"]


@given(
    st.floats(0.3, 2), st.sampled_from([1.0, 0.9, 0.5]), st.sampled_from([0, 5]), st.sampled_from([0.0, 0.05]), st.integers(0, 99)
)
def test_the_log_probability_of_a_draw_is_that_of_what_can_be_drawn(temperature, top_p, top_k, min_p, seed):
    """Beside the distribution as it is defined: temperature, then the k likeliest, the likeliest that hold top_p, and min_p."""
    how = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(seed))
    p, order = (logits.double() / temperature).softmax(-1).sort(descending=True)
    if top_k:
        p = torch.where(torch.arange(12) < top_k, p, 0.0)
        p = p / p.sum()
    kept = torch.where((p.cumsum(0) - p < top_p) & (p >= min_p * p[0]), p, 0.0)
    for share, token in zip((kept / kept.sum()).tolist(), order.tolist(), strict=True):
        if share:
            assert math.exp(sampling.drawn_logprob(logits, how, token)) == pytest.approx(share, rel=1e-4)
    token = sampling.draw(logits, how, sampling.SamplerState(torch.Generator().manual_seed(seed)))
    assert kept[order == token] > 0
    assert sampling.drawn_logprob(logits, Sampling(temperature=0), int(order[0])) == 0


def test_what_is_stored_is_what_the_trainer_computes(model, tmp_path):
    """Through the server: tokens with the stop token, and the log-probability of each as it was drawn."""
    database = f"sqlite:///{tmp_path / 'feedback.db'}"
    with serving({"tiny": EngineOptions(model, kv_cache_gib=0.01)}, feedback=database) as server:
        client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
        for seed in range(6):
            asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60, "seed": seed, "temperature": 0.8}
            if seed % 2:
                pieces = client.chat.completions.create(model="tiny", store=True, stream=True, **asked)
                assert all(choice.logprobs is None for piece in pieces for choice in piece.choices)
            else:
                assert client.chat.completions.create(model="tiny", store=True, **asked).choices[0].logprobs is None
    network, encoder, ended = read_model(model), ChatEncoder.of(model), 0
    for row in Feedback(database).rows(responses):
        prompt = encoder.prompt(row.messages)
        whole = torch.tensor([[*prompt, *row.token_ids]])
        targets = torch.where(torch.arange(whole.shape[1] - 1) < len(prompt) - 1, -100, whole[:, 1:])
        found = target_log_probs(network, whole[:, :-1], targets, None, temperature=0.8)
        assert found.tolist() == pytest.approx(row.logprobs, abs=1e-3)
        stops = encoder.vocabulary.stop_tokens
        assert (row.finish_reason == "stop") == (row.token_ids[-1] in stops) and not set(row.token_ids[:-1]) & stops
        ended += row.finish_reason == "stop"
    assert ended  # else the seeds show nothing of stop tokens


def test_rewards_of_stored_answers_are_learned_and_the_ratio_is_bounded(model, rows, tmp_path):
    options = GRPOOptions(max_completion_length=8, importance_cap=2.0, kl_beta=0.01)
    source = RewardSource(stored=write(tmp_path / "stored.jsonl", rows))
    result = tune_on_rewards(model, source, tmp_path / "run", SETTINGS, options=options, quiet=True)
    record = steps(tmp_path / "run")
    assert all(row["importance_max"] <= 2.0 and 0 <= row["cut_share"] <= 1 for row in record)
    assert any(row["ratio_max"] > 2.0 for row in record) and record[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert result.scores["reward"] > np.mean([row["reward"] for row in rows]) and 0 < result.scores["ess_share"] <= 1
    network, encoder = read_model(tmp_path / "run" / "model"), ChatEncoder.of(model)
    how = Sampling(max_tokens=8, n=100, stop_tokens=encoder.vocabulary.stop_tokens)
    prompts = [encoder.prompt([{"role": "user", "content": f"Hello {i}"}]) for i in (3, 50)]
    own = [even(one.tokens) for group in draw(network, prompts, how, 0) for one in group]
    assert np.mean(own) > 0.05 + np.mean([row["reward"] for row in rows])


def test_an_evaluation_tells_the_watchdog_that_it_goes_on(model, rows, tmp_path):
    config = config_from_fields({
        "tokens": 48 * 8, "init_from": str(model), "task": {"name": "stored_grpo"}, "optimizer": {"name": "adamw"},
        "data": {"corpus": write(tmp_path / "stored.jsonl", rows), "seq_len": 48, "batch_size": 8, "max_epochs": 99},
    }, "test")  # fmt: skip
    task, network, beats = open_task(config, tmp_path, quiet=True), read_model(model), []
    task.evaluate(
        SimpleNamespace(model=network, evaluation_rows=lambda most: most, watchdog=SimpleNamespace(beat=lambda: beats.append(1)))
    )
    assert len(beats) == 3  # 2 of 20 prompts are kept, with 6 answers each, of which 4 are weighed at once


def test_the_weights_that_drew_at_the_temperature_of_the_draw_have_ratios_of_one(model, rows, tmp_path):
    source = RewardSource(stored=write(tmp_path / "stored.jsonl", rows))
    settings = TuneSettings(steps=2, seq_len=48, batch_size=len(rows), max_epochs=99)
    options = GRPOOptions(temperature=1.2, max_completion_length=8)
    tune_on_rewards(model, source, tmp_path / "run", settings, options=options, quiet=True)
    first = steps(tmp_path / "run")[0]
    assert first["ratio_min"] == pytest.approx(1, abs=1e-3) and first["ratio_max"] == pytest.approx(1, abs=1e-3)
    assert first["cut_share"] == 0


def test_thumbs_comparisons_and_functions_say_what_an_answer_is_worth(model, rows, tmp_path):
    database = tmp_path / "feedback.db"
    feedback = Feedback(f"sqlite:///{database}")
    for i, row in enumerate(rows[:60]):
        kept = {
            "id": str(i), "model": "m", "checkpoint": "0", "messages": row["prompt"], "text": "t", "token_ids": row["token_ids"],
            "logprobs": None if i == 0 else row["logprobs"], "sampling": {"temperature": 0.0 if i == 1 else 1.2},
            "finish_reason": "abort" if i == 2 else "stop", "prompt_tokens": 1, "ttft_ms": None,
        }  # fmt: skip
        feedback.add_response(kept, f"user {i % 7}")
        if i != 3:
            feedback.rate(str(i), "judge", 1 if i % 2 else -1, [], None)
    feedback.rate("5", "judge", -1, [], None)  # the later one counts
    feedback.compare("6", "7", "other", "a", False, False)
    folder = tmp_path / "home" / "g" / "data"
    settings = TuneSettings(steps=2, seq_len=48, batch_size=8, max_epochs=99)
    tune_on_rewards(model, RewardSource(stored=str(database)), folder.parent, settings, options=OPTIONS, quiet=True)
    found = read_stored(folder / "stored.jsonl")
    people = json.loads((folder / "people.json").read_text())
    assert people["left_out"] == {
        "without log-probabilities": 1, "drawn without chance (temperature 0)": 1, "not finished": 1, "not judged": 1,
    }  # fmt: skip
    assert [one.reward for one in found[:4]] == [-1, -1, 0, 0]  # 4, 5, and 6 and 7 with a comparison against their thumbs
    assert set(people["users"]["stored"]) <= feedback.users()
    lineage = json.loads((folder.parent / "lineage.json").read_text())
    assert lineage["people"]["users"] == people["users"] and lineage["source"] == str(database)
    gone = people["users"]["stored"][0]
    still = holders(tmp_path / "home", str(database), feedback.users() - {gone})
    assert still == {gone: ["g/data/stored.jsonl", "g/model"]}
    assert all((tmp_path / "home" / held).exists() for held in still[gone])
    (tmp_path / "r.py").write_text("def reward(completions):\n    return [float(len(c[0]['content'])) for c in completions]\n")
    source = RewardSource(rewards=str(tmp_path / "r.py"), stored=str(database))
    tune_on_rewards(model, source, tmp_path / "home" / "f", settings, options=OPTIONS, quiet=True)
    judged = read_stored(tmp_path / "home" / "f" / "data" / "stored.jsonl")
    assert len(judged) == len(found) + 1  # the one that nobody judged
    encoder = ChatEncoder.of(model)
    assert all(one.reward == len(encoder.tokenizer.decode(one.tokens)) for one in judged)


def test_an_answer_alone_is_compared_with_all():
    found = advantages([(1,), (1,), (2,)], [1.0, 0.0, 1.0], scaled=False)
    assert found == pytest.approx([0.5, -0.5, 1 / 3])
    assert advantages([(1,), (1,)], [3.0, 1.0], scaled=True) == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)], abs=1e-3)


GOOD = {"prompt": "a", "token_ids": [5], "logprobs": [-0.1], "reward": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": []}, "line 1: write"),
        ({"logprobs": None}, "line 1: write"),
        ({"token_ids": [5, True]}, "line 1: write"),
        ({"token_ids": [5, 6]}, "line 1: 2 tokens have 1 log-probabilities"),
        ({"logprobs": [0.3]}, "line 1: a log-probability must be a number of at most 0"),
        ({"logprobs": [float("nan")]}, "line 1: a log-probability must be a number of at most 0"),
        ({"reward": None}, "line 1: the reward must be a finite number"),
        ({"reward": float("nan")}, "line 1: the reward must be a finite number"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "line 1: there is no role 'robot'"),
        ({"token_ids": [100_000]}, "row 1 has a token that the model does not know"),
        ({"token_ids": [5] * 99, "logprobs": [-0.1] * 99}, "answers to 0 prompts within 48 tokens: 10 are needed"),
    ],
)
def test_what_is_no_stored_answer_is_told_and_nothing_is_written(model, tmp_path, change, said):
    source = RewardSource(stored=write(tmp_path / "stored.jsonl", [{**GOOD, **change}]))
    with pytest.raises(TenfoldError, match=said):
        tune_on_rewards(model, source, tmp_path / "run", SETTINGS, options=OPTIONS, quiet=True)
    assert not (tmp_path / "run" / "model").exists()


def test_sources_that_say_nothing_are_refused(model, tmp_path):
    def tuned(**source):
        name = "run of " + source.get("stored", "none").rpartition("/")[2]
        tune_on_rewards(model, RewardSource(**source), tmp_path / name, SETTINGS, options=OPTIONS, quiet=True)

    with pytest.raises(TenfoldError, match="give --rewards, or --stored"):
        tuned()
    equal = write(tmp_path / "equal.jsonl", [{**GOOD, "prompt": f"{i}"} for i in range(20)])
    with pytest.raises(TenfoldError, match="are worth the same"):
        tuned(stored=equal)
    with pytest.raises(TenfoldError, match="give --stored or --data, not both"):
        tuned(stored=equal, data="prompts.jsonl")
    (tmp_path / "equal.jsonl").write_text((tmp_path / "equal.jsonl").read_text().replace("1.0", "0.5"))
    with pytest.raises(TenfoldError, match="was made of other rows or rewards"):
        tuned(stored=equal)
    with pytest.raises(TenfoldError, match="gives num_iterations, 4, which has no effect where answers are stored"):
        idle = GRPOOptions(num_iterations=4)
        tune_on_rewards(model, RewardSource(stored=equal), tmp_path / "idle", SETTINGS, options=idle, quiet=True)
    Feedback(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(TenfoldError, match="has no stored answers to learn from"):
        tuned(stored=str(tmp_path / "empty.db"))
