"""Preferences, ratings and rewards on the trainer: what a run learns, keeps, goes on with and refuses."""

import json
import math

import numpy as np
import pytest
import torch
from chat_models import chat_model

from tenfold.data.conversations.answers import pack_pairs, pack_rated
from tenfold.data.conversations.preferences import Preference, RatedAnswer, read_preferences, read_rated
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import DPOOptions, GRPOOptions, KTOOptions, RewardSource, TuneSettings
from tenfold.learn.rewards import read_prompts, read_rewards
from tenfold.learn.sampler import draw
from tenfold.learn.tune import tune, tune_on_rewards
from tenfold.model.io.huggingface import read_model
from tenfold.model.log_probs import document_log_probs, log_probs, target_log_probs
from tenfold.serve.request import Sampling
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics

SETTINGS = TuneSettings(steps=25, seq_len=96, batch_size=4, learning_rate=1e-3, max_epochs=99, held_out=0.2)


def said(role, content):
    return [{"role": role, "content": content}]


def pair(i):
    return {
        "prompt": said("user", f"Hello {i}"),
        "chosen": said("assistant", "Lima. " * (1 + i % 2)),
        "rejected": said("assistant", "7 " * (2 + i % 4)),
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("learn") / "tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", [pair(i) for i in range(40)])


def steps(directory):
    return [row for row in read_metrics(directory / "run.jsonl") if row["event"] == "step"]


def test_log_probs_and_their_gradient_are_pytorchs():
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    targets, scale = torch.randint(1000, (50,)), torch.randn(50)
    for temperature in (1.0, 0.7):
        theirs = torch.log_softmax(hidden @ weight.T / temperature, -1).gather(1, targets[:, None])[:, 0]
        expected = torch.autograd.grad((theirs * scale).sum(), (hidden, weight))
        ours = log_probs(hidden, weight, targets, temperature)
        found = torch.autograd.grad((ours * scale).sum(), (hidden, weight))
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(found, expected)


def test_packed_answers_have_the_log_probability_that_each_has_alone(model, pairs):
    encoder, network = ChatEncoder.of(model), read_model(model)
    found = read_preferences(pairs)[:7]
    packed = pack_pairs(found, encoder, 200)
    assert len(packed) < 7 and packed.examples == 7
    rows = [torch.from_numpy(t) for t in (packed.rows.tokens, packed.rows.targets, packed.rows.document)]
    together = document_log_probs(network, *rows, 2 * packed.members.shape[1]).unflatten(1, (-1, 2))
    for row, members in enumerate(packed.members):
        for place, _ in enumerate(members[members >= 0]):
            mine = [(rows[2][row] == 2 * place + which) for which in (0, 1)]
            alone = [target_log_probs(network, rows[0][row][m][None], rows[1][row][m][None], None).sum() for m in mine]
            torch.testing.assert_close(together[row, place], torch.stack(alone))
    tokens = packed.rows.targets[packed.rows.targets >= 0]
    stops = np.isin(tokens, sorted(encoder.vocabulary.stop_tokens)).sum()
    assert stops == 14 and packed.lengths.sum() == len(tokens)


def test_answers_that_are_cut_never_train_their_stop(model):
    encoder = ChatEncoder.of(model)
    long = Preference(said("user", "a") + said("assistant", "7 " * 90), said("user", "a") + said("assistant", "Lima"))
    packed = pack_pairs([long], encoder, 64)
    stops = np.isin(packed.rows.targets, sorted(encoder.vocabulary.stop_tokens)).sum()
    assert (packed.cut, stops) == (1, 1)
    same = Preference(
        said("user", "a") + said("assistant", "7 " * 90 + "a"), said("user", "a") + said("assistant", "7 " * 90 + "b")
    )
    assert pack_pairs([long, same], encoder, 64).left_out == 1
    with pytest.raises(TenfoldError, match="two different answers within 64 tokens"):
        pack_pairs([same], encoder, 64)
    with pytest.raises(TenfoldError, match="at least two"):
        pack_rated([RatedAnswer(long.rejected, True)], encoder, 64)


def test_dpo_begins_at_ln_2_learns_and_keeps_its_reference(model, pairs, tmp_path):
    result = tune(model, str(pairs), tmp_path / "dpo", SETTINGS, options=DPOOptions(), quiet=True)
    record = steps(tmp_path / "dpo")
    assert record[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.loss < 0.5 and result.scores["accuracy"] == 1.0 and result.scores["margin"] > 0.5
    kept = sorted((tmp_path / "dpo" / "data").glob("*.reference-*.parquet"))
    assert [file.name.split(".")[0] for file in kept] == ["train", "validation"]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in kept]
    again = tune(model, str(pairs), tmp_path / "dpo", SETTINGS, options=DPOOptions(), quiet=True)
    assert again.loss == result.loss and before == [(file.read_bytes(), file.stat().st_mtime_ns) for file in kept]


def test_kto_raises_good_answers_above_others(model, pairs, tmp_path):
    result = tune(model, str(pairs), tmp_path / "kto", SETTINGS, options=KTOOptions(), quiet=True)
    assert steps(tmp_path / "kto")[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert result.loss < 0.45 and result.scores["reward_good"] > 0 > result.scores["reward_bad"]


def test_the_sampler_draws_what_the_trainer_thinks_it_does(model):
    network, encoder = read_model(model), ChatEncoder.of(model)
    prompts = [encoder.prompt(said("user", text)) for text in ("Hello", "How are you?")]
    stops = encoder.vocabulary.stop_tokens
    drawn = draw(network, prompts, Sampling(temperature=0.8, max_tokens=40, n=20, stop_tokens=stops), seed=1)
    assert draw(network, prompts, Sampling(temperature=0.8, max_tokens=40, n=20, stop_tokens=stops), seed=1) == drawn
    assert all(p.requires_grad for p in network.parameters()) and network.training
    for prompt, answers in zip(prompts, drawn, strict=True):
        assert len({tuple(a.tokens) for a in answers}) > 15
        for a in answers:
            whole = torch.tensor([[*prompt, *a.tokens]])
            targets = torch.where(torch.arange(whole.shape[1] - 1) < len(prompt) - 1, -100, whole[:, 1:])
            found = target_log_probs(network, whole[:, :-1], targets, None, temperature=0.8)
            assert found.tolist() == pytest.approx(a.log_probs, abs=1e-4)
            assert a.ended == (a.tokens[-1] in stops) and not set(a.tokens[:-1]) & stops
            assert a.ended or len(a.tokens) == 40


REWARD = """
def reward(completions, wanted, **columns):
    return [text.count(letter) / 8 for text, letter in zip(completions, wanted)]

def prompts():
    return [{"prompt": f"Hello {i}", "wanted": "a"} for i in range(40)]
"""


@pytest.mark.parametrize("iterations", [1, 2])
def test_grpo_raises_what_is_rewarded(model, tmp_path, iterations):
    (tmp_path / "letters.py").write_text(REWARD)
    settings = TuneSettings(steps=30, seq_len=40, batch_size=32, learning_rate=3e-3)
    options = GRPOOptions(max_completion_length=8, num_iterations=iterations, kl_beta=0.01, validation_prompts=4)
    source = RewardSource(str(tmp_path / "letters.py"))
    tune_on_rewards(model, source, tmp_path / "grpo", settings, options=options, quiet=True)
    record = steps(tmp_path / "grpo")
    drawn = [row for row in record if "reward" in row]
    assert len(drawn) == 30 // iterations
    assert np.mean([row["reward"] for row in drawn[-4:]]) > 3 * np.mean([row["reward"] for row in drawn[:4]])
    assert all(row["kl"] >= 0 and 0 <= row["clip_share"] <= 1 and row["length"] <= 8 for row in drawn)
    assert record[0]["kl"] == pytest.approx(0, abs=1e-6) and record[-1]["kl"] > 0.01
    assert record[0]["importance_max"] == pytest.approx(1, abs=1e-3) and any(row["clip_share"] for row in record) == (
        iterations == 2
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "reward of .* failed: ZeroDivisionError"),
        ("[float('nan')] * len(completions)", "gave nan for the answer"),
        ("[1.0]", "gave 1 numbers for 2 answers"),
    ],
)
def test_a_reward_that_gives_no_number_is_named(tmp_path, body, said):
    (tmp_path / "r.py").write_text(f"def reward(completions):\n    return {body}\n")
    rewards = read_rewards(str(tmp_path / "r.py"))
    with pytest.raises(TenfoldError, match=said):
        rewards([{"prompt": "a"}] * 2, ["b", "c"])


def test_rewards_take_trls_arguments_and_reasoning_gym(tmp_path):
    (tmp_path / "r.py").write_text(
        "def reward_length(prompts, completions, **columns):\n    return [len(c[0]['content']) for c in completions]\n"
        "def reward_extra(completions, worth):\n    return worth\n"
    )
    row = {"prompt": said("user", "a"), "worth": 10}
    assert read_rewards(str(tmp_path / "r.py"))([row, row], ["bb", "ccc"]) == [12, 13]
    with pytest.raises(TenfoldError, match="gives no prompts"):
        read_prompts(str(tmp_path / "r.py"))
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(TenfoldError, match="has no rewards"):
        read_rewards(str(tmp_path / "none.py"))
    with pytest.raises(TenfoldError, match="no file of rewards"):
        read_rewards(str(tmp_path / "missing.py"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 2: .* are equal"),
        (
            {"chosen": said("user", "a") + said("assistant", "b"), "rejected": said("user", "c") + said("assistant", "d")},
            "same prompt",
        ),
        ({"prompt": "a", "chosen": "b"}, "line 2: write"),
        ({"prompt": "a", "chosen": said("user", "b"), "rejected": "c"}, "must be one message of the assistant"),
        ({"prompt": said("robot", "a"), "chosen": "b", "rejected": "c"}, "no role 'robot'"),
    ],
)
def test_what_is_no_preference_is_told_with_its_line(tmp_path, row, said):
    with pytest.raises(TenfoldError, match=said):
        read_preferences(write(tmp_path / "pairs.jsonl", [pair(0), row]))


def test_ratings_are_read_from_labels_and_preferences(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": False}, pair(1)]
    assert [answer.good for answer in read_rated(write(tmp_path / "r.jsonl", rows))] == [False, True, False]
    with pytest.raises(TenfoldError, match="a label that is true or false"):
        read_rated(write(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b", "label": 1}]))
