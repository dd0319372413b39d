"""A run is the run that was asked for: what it began with is frozen, and every later start goes on with it or is refused."""

import io
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_configs import run_config
from stop_at import SignalAt, pretrain_with

from tenfold.data.text.corpus import build, open_corpus
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.spec.commands import print_json
from tenfold.spec.errors import TenfoldError
from tenfold.train.commands import RunOptions, resume
from tenfold.train.commands import run as train
from tenfold.train.config import RunConfig
from tenfold.train.hook import Hook
from tenfold.train.identity import MAY_CHANGE, identify
from tenfold.train.metrics import read_metrics
from tenfold.train.resolve import resolve_model
from tenfold.train.result import read_result
from tenfold.train.run_file import config_from_fields, read_config, write_config
from tenfold.train.tasks.pretrain import Pretraining, pretrain

SMALL = {"model": {"width": 16}, "seq_len": 64, "evaluate_tokens": 2048, "log_every": 5, "tokens": 6400, "dtype": "float32"}
STRICT = {"parse_constant": lambda name: pytest.fail(f"{name} is not JSON")}


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def events(directory, kind):
    return [row for row in read_metrics(directory / "run.jsonl") if row["event"] == kind]


@pytest.fixture
def stopped(corpus, tmp_path):
    assert not pretrain_with([SignalAt(3)], run_config(**SMALL), corpus, tmp_path / "run").finished
    return tmp_path / "run"


# For every setting another value than `SMALL` and the defaults have.
OTHER = {
    "flops": 1e7, "tokens": 640, "law": None, "seed": 9, "init_from": None, "device": "cpu", "dtype": "bfloat16",
    "compile": "off", "fp8": True, "threads": 2, "task": {"z_loss": 0.1}, "model": {"width": 32}, "version": None,
    "data.corpus": "elsewhere", "data.mixture": None, "data.images": None, "data.image_share": None, "data.vocab_size": None,
    "data.seq_len": 32, "data.batch_size": 2, "data.max_epochs": 50.0, "data.cache_gib": None,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.1, "optimizer.beta2": 0.5,
    "optimizer.schedule": "cosine", "optimizer.warmup": 0.3, "optimizer.decay": 0.3, "optimizer.max_grad_norm": 0.5,
    "optimizer.max_skipped": 5, "parallel": {"micro_batch": 2}, "checkpoint.every_s": 5.0, "checkpoint.keep_last": 4,
    "checkpoint.upload_to": None, "log.every": 7, "log.tensorboard": True, "log.wandb": "project",
    "health.hang_after_s": 50.0, "health.sdc_check_every": 3, "health.loss_spike": 9.0,
}  # fmt: skip


def leaves(table=RunConfig, prefix=""):
    for field in msgspec.structs.fields(table):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from leaves(field.type, f"{field.name}.")
        else:
            yield prefix + field.name


def test_every_setting_that_is_changed_is_refused_by_name_or_is_on_the_list(corpus, stopped):
    assert set(leaves()) == set(OTHER)
    fields = msgspec.to_builtins(run_config(**SMALL)) | {"parallel": {}}
    before = files(stopped)
    for name, value in OTHER.items():
        if value is None:  # names a file or a service, leads to what is compared itself, or is refused without images or a store
            continue
        table, _, key = name.rpartition(".")
        there = fields[table] if table else fields
        new = {**there, key: {**(there[key] or {}), **value} if isinstance(value, dict) else value}
        if name == "flops":
            new["tokens"] = None
        config = config_from_fields({**fields, table: new} if table else new, "test")
        task = Pretraining(config, corpus, stopped.parent)
        if name in MAY_CHANGE or table in MAY_CHANGE:
            assert any(changed.startswith(name) for changed in identify(task, config, stopped).changed), name
        else:
            with pytest.raises(TenfoldError, match=r"begun with other settings \(.*--out") as refused:
                identify(task, config, stopped)
            said = {"flops": "tokens", "model": "model.dim", "task": "task.z_loss"}.get(name, name)
            assert f"{said} was " in str(refused.value) and "\n" not in str(refused.value)
    assert files(stopped) == before


def test_a_refused_start_changes_nothing_and_the_run_goes_on(corpus, stopped):
    before = files(stopped)
    with pytest.raises(TenfoldError, match=r"seed was 0 and is 9"):
        pretrain(run_config(**SMALL, seed=9), corpus, stopped, quiet=True)
    with pytest.raises(TenfoldError, match="model.dim was 16 and is 48; model.n_heads was 1 and is 3"):
        pretrain(run_config(**SMALL | {"model": {"width": 48}}), corpus, stopped, quiet=True)
    assert files(stopped) == before
    assert pretrain(read_config(stopped / "run.toml"), corpus, stopped, quiet=True).finished


def test_a_run_goes_on_with_more_tokens_and_the_record_says_so(corpus, stopped):
    changed = run_config(**SMALL | {"tokens": 12_800, "log_every": 1}, keep_last=5, threads=1)
    assert pretrain(changed, corpus, stopped, quiet=True).tokens == pytest.approx(12_800, rel=0.1)
    began, (said,) = events(stopped, "start")[0], events(stopped, "changed")
    assert said["step"] == 3 and said["settings"]["tokens"] == [6400, 12_800] and said["settings"]["log.every"] == [5, 1]
    steps = events(stopped, "step")
    assert [row["step"] for row in steps] == [*range(4, len(steps) + 4)]
    assert {row["tokens"] / row["step"] for row in steps} == {began["hyperparameters"]["batch_size"] * 64}
    peak = max(row["learning_rate"] for row in steps)
    assert sum(row["learning_rate"] == peak for row in steps) > began["hyperparameters"]["steps"] / 2  # the longer schedule's
    with pytest.raises(TenfoldError, match="tokens was 12800 and is 6400"):
        pretrain(run_config(**SMALL), corpus, stopped, quiet=True)


def test_a_run_keeps_its_number_format_and_one_that_saved_nothing_begins_anew(corpus, tmp_path):
    config = run_config(**SMALL | {"dtype": "bfloat16"})
    pretrain_with([SignalAt(2)], config, corpus, tmp_path)
    auto = run_config(**SMALL | {"dtype": "auto"})  # at this width float32 where nothing was begun
    assert identify(Pretraining(auto, corpus, tmp_path), auto, tmp_path).config.dtype == "bfloat16"

    class Failing(Hook):
        def after_step(self, run, done):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        pretrain_with([Failing()], config, corpus, tmp_path / "failed")
    assert pretrain(run_config(**SMALL, seed=3), corpus, tmp_path / "failed", quiet=True).finished


def test_a_setting_that_a_start_leaves_out_is_its_default_and_so_is_one_that_is_younger_than_the_run(corpus, stopped):
    file, young = stopped / "identity.json", ("task.z_loss", "task.mtp", "optimizer.schedule", "data.image_share", "seed")
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "settings": {key: value for key, value in said["settings"].items() if key not in young}}))

    def changed(**settings):
        config = run_config(**SMALL, **settings)
        return identify(Pretraining(config, corpus, stopped.parent), config, stopped).changed

    assert changed() == changed(z_loss=0.0, mtp=0) == {}
    for other, shown in (({"z_loss": 0.1}, "task.z_loss was 0 and is 0.1"), ({"seed": 9}, "seed was 0 and is 9")):
        with pytest.raises(TenfoldError, match=shown):
            changed(**other)


def test_an_older_run_without_an_identity_is_held_to_its_run_file(corpus, stopped):
    (stopped / "identity.json").unlink()
    with pytest.raises(TenfoldError, match="seed was 0 and is 9"):
        pretrain(run_config(**SMALL, seed=9), corpus, stopped, quiet=True)
    assert pretrain(run_config(**SMALL), corpus, stopped, quiet=True).finished and (stopped / "identity.json").exists()


def test_other_text_is_refused_and_the_same_text_elsewhere_is_not(corpus, text_folder, stopped, tmp_path):
    copy = shutil.copytree(corpus.directory, tmp_path / "moved")
    other = build(text_folder / "email", tmp_path / "other", vocab_size=400, quiet=True)
    config = run_config(**SMALL, corpus=str(copy))
    assert identify(Pretraining(config, open_corpus(copy), tmp_path), config, stopped).changed["data.corpus"][1] == str(copy)
    with pytest.raises(TenfoldError, match=r"content.text was \w+ and is \w+; tokenizer was"):
        pretrain(run_config(**SMALL), other, stopped, quiet=True)


def test_resume_works_from_another_folder(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(corpus.directory.parent)
    config = run_config(**SMALL, corpus=corpus.directory.name)
    pretrain_with([SignalAt(3)], config, corpus, tmp_path / "run")
    (tmp_path / corpus.directory.name).mkdir()  # another folder of that name, without a corpus
    monkeypatch.chdir(tmp_path)
    resume(Path("run"), json=True)
    said = json.loads(capsys.readouterr().out, **STRICT)
    assert said["finished"] and said["loss"] == read_result(tmp_path / "run").loss


def test_a_second_process_in_one_run_is_refused_by_name_of_the_first(corpus, tmp_path):
    config = run_config(**SMALL | {"tokens": 10**7}, max_epochs=1000.0, corpus=str(corpus.directory))
    write_config(config, tmp_path / "run.toml")
    command = [sys.executable, "-m", "tenfold", "train", tmp_path / "run.toml", "--out", tmp_path / "run"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "identity.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    with pytest.raises(TenfoldError, match=rf"Another process is training in .*\(process {first.pid} on .*train.*since"):
        pretrain(config, corpus, tmp_path / "run", quiet=True)
    first.send_signal(signal.SIGTERM)
    assert "Stopped and saved at step" in first.communicate(timeout=120)[1] and first.returncode == 1
    step = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert pretrain_with([SignalAt(2)], config, corpus, tmp_path / "run").step == step + 2


def test_a_finished_run_whose_file_was_edited_is_refused(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fields = run_config(**SMALL, corpus=str(corpus.directory))
    train(fields, Path("generations/run"), RunOptions(json=True))
    before, _ = files(tmp_path), capsys.readouterr()
    edited = run_config(**SMALL, corpus=str(corpus.directory), learning_rate=1e-4)
    with pytest.raises(TenfoldError, match=r"optimizer.learning_rate was 0.0\d+ and is 0.0001"):
        train(edited, Path("generations/run"), RunOptions(json=True))
    assert capsys.readouterr().out == "" and files(tmp_path) == before


class Poison(Hook):
    """Puts a NaN among the weights after the last step."""

    def finish(self, run):
        with torch.no_grad():
            next(run.model.parameters()).view(-1)[-1] = math.nan


def test_weights_that_are_no_numbers_are_no_result(corpus, tmp_path):
    for _ in range(2):  # the second start finds the saved weights
        with pytest.raises(TenfoldError, match="not finite numbers, so no model is written"):
            pretrain_with([Poison()], run_config(**SMALL), corpus, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists() and read_result(tmp_path / "run") is None
    pretrain(run_config(**SMALL), corpus, tmp_path / "good", quiet=True)
    model = read_model(tmp_path / "good" / "model")
    Poison().finish(SimpleNamespace(model=model))
    write_model(model, tmp_path / "bad", tokenizer_directory=corpus.directory)
    from_it = {key: value for key, value in SMALL.items() if key != "model"} | {"init_from": str(tmp_path / "bad")}
    with pytest.raises(TenfoldError, match="bad has weights that are not finite"):
        pretrain(run_config(**from_it), corpus, tmp_path / "on", quiet=True)


@given(st.recursive(st.floats() | st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_is_printed_and_written_is_json(value):
    with redirect_stdout(io.StringIO()) as out:
        print_json(value)
    assert json.loads(out.getvalue(), **STRICT) == json.loads(json.dumps(value), parse_constant=lambda _: None)


def test_a_validation_text_shorter_than_a_row_is_said_before_training(corpus, tmp_path):
    length = corpus.validation_tokens
    config = run_config(**SMALL | {"seq_len": length, "tokens": 2 * length}, batch_size=1)
    with pytest.raises(TenfoldError, match=f"validation text is shorter than one sequence of {length} tokens"):
        pretrain(config, corpus, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model, context", [({"width": 16}, 64), ({"width": 16, "context": 32}, 32), (None, 64)])
def test_a_model_promises_the_context_that_it_was_trained_with(model, context):
    size = {"flops": 1e9} if model is None else {"tokens": 6400, "model": model}
    assert resolve_model(run_config(**size, seq_len=64), 400)[0].context == context
