"""A dense model made into experts by the command, and trained on from there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_configs import run_config

from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.model.commands import upcycle
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama import Llama
from tenfold.model.llama4 import Llama4
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.train.metrics import read_metrics
from tenfold.train.optim.hyperparameters import derive
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import pretrain

SMALL = {"seq_len": 64, "batch_size": 4, "evaluate_tokens": 4096, "log_every": 1}


def tenfold(*arguments):
    command = [str(Path(sys.executable).with_name("tenfold")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("dense") / "g1"
    config = run_config(tokens=40_000, model={"width": 32}, **SMALL)
    return directory, pretrain(config, corpus, directory, quiet=True)


def test_a_run_goes_on_from_the_dense_model_with_experts(dense, corpus, tmp_path):
    directory, result = dense
    done = tenfold("upcycle", directory, "--out", tmp_path / "wide", "--experts", 4, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["parameters"] > said["active"] == pytest.approx(read_model(directory / "model").spec.parameters().total, rel=0.03)
    # The first steps learn nothing yet: the loss is that of the dense model, not that of fresh weights.
    rate = derive(40_000, SMALL["seq_len"], batch_size=SMALL["batch_size"]).learning_rate  # that of a run from the start
    config = run_config(tokens=40_000, init_from=str(tmp_path / "wide"), learning_rate=rate, **SMALL)
    on = pretrain(config, corpus, tmp_path / "on", quiet=True)
    first = next(e["loss"] for e in read_metrics(tmp_path / "on" / "run.jsonl") if e["event"] == "step")
    assert first < result.loss + 0.5 and on.loss < result.loss - 0.05
    model = read_model(tmp_path / "on" / "model")
    assert isinstance(model, Llama4) and model.spec.n_experts == 4
    apart = model.layers[0].ffn.w1.weight
    assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_what_cannot_be_upcycled_or_begun_from_is_one_sentence(dense, corpus, tmp_path):
    directory, _ = dense
    upcycle(directory, out=tmp_path / "wide", experts=2)
    write_model(Llama(ModelSpec("odd", dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=81, vocab_size=400)), tmp_path / "odd")
    done = tenfold("upcycle", tmp_path / "odd", "--out", tmp_path / "x")
    assert done.returncode == 1 and done.stderr.strip().count("\n") == 0
    assert "odd cannot be made into 16 experts: its feed-forward of 81 must divide into a shared and a routed half" in done.stderr
    for source, out, experts, sentence in (
        (directory, "wide", 16, "is not empty"),
        (directory, "x", 0, "there must be at least one expert"),
        (tmp_path / "wide", "x", 16, "only a dense Llama 3 can be made into experts"),
        (tmp_path, "x", 16, "no config.json"),
    ):
        with pytest.raises(TenfoldError, match=sentence):
            upcycle(source, out=tmp_path / out, experts=experts)
    write_model(
        Llama(ModelSpec("small", dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=80, vocab_size=300)), tmp_path / "small"
    )
    with pytest.raises(TenfoldError, match="has 300 tokens in its vocabulary, but the corpus has 400"):
        pretrain(run_config(tokens=4000, init_from=str(tmp_path / "small"), **SMALL), corpus, tmp_path / "run", quiet=True)
    train_tokenizer(["some other text"], 270).save(str(tmp_path / "wide" / "tokenizer.json"))
    with pytest.raises(TenfoldError, match="has another tokenizer than the corpus"):
        pretrain(run_config(tokens=4000, init_from=str(tmp_path / "wide"), **SMALL), corpus, tmp_path / "run", quiet=True)
    with pytest.raises(TenfoldError, match="both model and init_from"):
        config_from_fields({"tokens": 5, "model": "llama-3.2-1b", "init_from": "x"}, "run.toml")
