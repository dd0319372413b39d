"""What a run will take, said before it: frozen, in the units of what is measured, and scored by its outcome."""

import json

import pytest
import torch
from chat_models import chat_model
from msgspec import structs

from tenfold.learn.budget import in_words
from tenfold.learn.options import DPOOptions, GRPOOptions, KTOOptions, LoRAOptions, RewardSource, TuneSettings
from tenfold.learn.tune import tune, tune_on_rewards
from tenfold.spec.forecasts import around, read_forecasts
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

SETTINGS = TuneSettings(steps=8, seq_len=64, batch_size=8, max_epochs=99)
REWARD = """
def reward(completions):
    return [float(len(c)) for c in completions]

def prompts():
    return [{"prompt": f"Hello {i}"} for i in range(20)]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("budget") / "tiny")


def rows(path):
    def answer(text):
        return [{"role": "assistant", "content": text}]

    found = [
        {"prompt": [{"role": "user", "content": f"Hello {i}"}], "chosen": answer("Lima"), "rejected": answer("7")}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def test_every_kind_of_run_is_forecast_before_and_scored_after(model, tmp_path):
    pairs, home = rows(tmp_path / "rows.jsonl"), tmp_path / "home"
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Lima"}]}) + "\n"
            for i in range(40)
        )
    )
    (tmp_path / "r.py").write_text(REWARD)
    tune(model, str(chats), home / "sft", SETTINGS, options=LoRAOptions(lora_rank=2, quantization="int8"), quiet=True)
    tune(model, pairs, home / "dpo", SETTINGS, options=DPOOptions(), quiet=True)
    tune(model, pairs, home / "kto", structs.replace(SETTINGS, rent_usd_per_h=3.6), options=KTOOptions(), quiet=True)
    options = GRPOOptions(max_completion_length=8, validation_prompts=2, num_generations=4)
    tune_on_rewards(model, RewardSource(str(tmp_path / "r.py")), home / "grpo", SETTINGS, options=options, quiet=True)
    scored = {one.forecast.key: one for one in read_forecasts(home)}
    for name in ("sft", "dpo", "kto", "grpo"):
        said = json.loads((home / name / "budget.json").read_text())
        end = json.loads((home / name / "run.jsonl").read_text().splitlines()[-1])
        assert said["steps"] == 8 and len(said["probe_seconds"]) == 2
        came = {kind: scored[f"{said['key']}/{kind}"] for kind in ("seconds", "kwh", "usd", "gib")}
        assert came["seconds"].measured == end["seconds"] and came["kwh"].measured == end["energy_kwh"]
        assert came["gib"].measured == end["peak_memory_gib"] and came["gib"].forecast.unit == "GiB"
        price = end["seconds"] / 1000 if name == "kto" else said["usd_per_kwh"] * end["energy_kwh"]
        assert came["usd"].measured == pytest.approx(price)
        assert came["seconds"].forecast.made <= came["seconds"].came
        # A tiny run on a busy machine: the order of magnitude alone is sure.
        assert 0.02 < came["seconds"].measured / came["seconds"].forecast.median < 50
        assert 0.5 < came["gib"].measured / came["gib"].forecast.median < 2


def test_a_run_that_has_finished_is_not_forecast_again_and_one_with_more_steps_is(model, tmp_path):
    pairs, home = rows(tmp_path / "rows.jsonl"), tmp_path / "home"
    for steps, count in ((8, 4), (8, 4), (12, 8)):
        settings = TuneSettings(steps=steps, seq_len=64, batch_size=8, max_epochs=99)
        tune(model, pairs, home / "dpo", settings, options=DPOOptions(), quiet=True)
        known = read_forecasts(home)
        assert len(known) == count and all(one.measured is not None for one in known)


def test_the_throw_away_start_changes_nothing_of_the_run(model, tmp_path):
    """The run of a generation whose forecast stands already, and that of one which is measured first, are equal to the bit."""
    (tmp_path / "r.py").write_text(REWARD)
    options = GRPOOptions(max_completion_length=8, validation_prompts=2, num_generations=4, num_iterations=4, kl_beta=0.1)
    losses = []
    for name in ("a", "b"):
        generation = tmp_path / name / "grpo"
        if name == "b":
            generation.mkdir(parents=True)
            (generation / "budget.json").write_bytes((tmp_path / "a" / "grpo" / "budget.json").read_bytes())
        tune_on_rewards(model, RewardSource(str(tmp_path / "r.py")), generation, SETTINGS, options=options, quiet=True)
        record = [json.loads(line) for line in (generation / "run.jsonl").read_text().splitlines()]
        losses.append([(row["loss"], row.get("reward"), row.get("kl")) for row in record if row["event"] == "step"])
    assert losses[0] == losses[1]


def test_the_forecast_in_words_names_each_unit_beside_its_figure():
    quantiles = {"tuning_seconds": around(120, 0.1), "tuning_usd": around(3, 0.1), "tuning_gib": around(2, 0.1)}
    for rent, what in ((0.0, "electricity"), (2.0, "rent")):
        said = in_words({"steps": 9, "quantiles": quantiles, "rent_usd_per_h": rent})
        assert said.startswith("9 steps, about 2 min 0 s (1 min") and f"3 USD of {what} (" in said and "2 GiB (" in said


@pytest.mark.parametrize("kind", ["pretrain", "sft", "dpo", "kto"])
def test_no_more_rows_are_evaluated_together_than_are_trained_on(kind, model, tmp_path):
    chats = tmp_path / "chats.jsonl"
    turns = [[{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Lima " * 9}] for i in range(60)]
    chats.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    corpus = {"pretrain": "stdlib", "sft": str(chats)}.get(kind) or rows(tmp_path / "rows.jsonl")
    fields = {
        "tokens": 2 * 4 * 64, "task": {"name": kind}, "parallel": {"micro_batch": 2},
        "data": {"corpus": corpus, "seq_len": 64, "batch_size": 4},
    }  # fmt: skip
    if kind == "pretrain":
        (tmp_path / "text").mkdir()
        for n in range(40):
            (tmp_path / "text" / f"{n}.txt").write_text(" ".join(f"word{i * n}" for i in range(300)))
        fields["data"] |= {"corpus": str(tmp_path / "text"), "vocab_size": 300}
        fields["model"] = {"width": 32, "n_layers": 1}
    else:
        fields["init_from"] = str(model)
    config = config_from_fields(fields, "test")
    task, together = open_task(config, tmp_path, quiet=True), []
    loss = task.loss
    task.loss = lambda model, batch: together.append((torch.is_grad_enabled(), len(batch.tokens))) or loss(model, batch)
    assert fit(task, config, tmp_path / "run", standard_hooks(config, quiet=True)).finished
    assert {rows for trained, rows in together if trained} == {2}
    assert max(rows for trained, rows in together if not trained) == 2
