"""Checkpoints: equal to the bit, whole through kills, damage, full disks, and over several processes."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import llama_shape
from tenfold.train import checkpoint, store
from tenfold.train.optim.hyperparameters import derive
from tenfold.train.optim.optimizer import make_optimizers

SPEC = llama_shape(16, 64)


def made(kind="muon", seed=0, spec=SPEC):
    torch.manual_seed(seed)
    model = Llama(spec)
    return model, make_optimizers(model, spec, derive(10**5, 64), kind)


def train(model, optimizers, steps):
    """Gradients that depend on the step and the weights alone, without data."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw).to(p.dtype) + 0.1 * p.detach()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def same(a, b):
    """Deep equality of nested states, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def states(model, optimizers):
    return model.state_dict(), [o.state_dict() for o in optimizers]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_and_what_it_trains_to_are_equal_to_the_bit(tmp_path, kind, dtype):
    model, optimizers = made(kind)
    model.to(dtype)
    train(model, optimizers, range(5))
    checkpoint.save(tmp_path, 5, model, optimizers, {"seen": 320, "rate": 0.1 + 0.2})
    other, others = made(kind, seed=9)
    other.to(dtype)
    assert not same(states(model, optimizers), states(other, others))
    assert checkpoint.load(checkpoint.latest(tmp_path), other, others) == {"seen": 320, "rate": 0.1 + 0.2}
    assert same(states(model, optimizers), states(other, others))
    train(model, optimizers, range(5, 9))
    train(other, others, range(5, 9))
    assert same(states(model, optimizers), states(other, others))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_saving_disturbs_nothing_not_even_before_the_first_step(tmp_path, kind):
    plain, saving, loading = made(kind), made(kind), made(kind, seed=9)
    checkpoint.save(tmp_path, 0, *saving, {})
    train(*loading, range(2))  # a state that the checkpoint must take away again
    checkpoint.load(tmp_path / "step-00000000", *loading)
    for run in (plain, saving, loading):
        train(*run, range(3))
    checkpoint.save(tmp_path, 3, *saving, {})
    for run in (plain, saving, loading):
        train(*run, range(3, 6))
    assert same(states(*plain), states(*saving))
    assert same(states(*plain), states(*loading))


def test_a_single_optimizer_needs_no_list(tmp_path):
    model, optimizers = made("adamw")
    train(model, optimizers, range(2))
    path = checkpoint.save(tmp_path, 2, model, optimizers[0], {})
    other, others = made("adamw", seed=9)
    checkpoint.load(path, other, others[0])
    assert same(states(model, optimizers), states(other, others))


def test_the_newest_few_are_kept_in_the_order_of_their_steps(tmp_path):
    model, optimizers = made()
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.restore_latest(tmp_path / "none", model, optimizers) is None
    for step in (7, 99_999_999, 100_000_000):  # the last has a digit more
        checkpoint.save(tmp_path, step, model, optimizers, {"step": step}, keep=2)
    (tmp_path / "step-notes.txt").write_text("not a checkpoint")
    assert {p.name for p in tmp_path.glob("step-*[0-9]")} == {"step-99999999", "step-100000000"}
    assert checkpoint.latest(tmp_path).name == "step-100000000"
    assert checkpoint.restore_latest(tmp_path, model, optimizers) == {"step": 100_000_000}


def flip(file, draw):
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut(file, draw):
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


@pytest.mark.parametrize("damage", [flip, cut, lambda file, draw: file.unlink()], ids=["bit", "cut", "gone"])
def test_damage_anywhere_is_found_and_the_one_before_is_used(tmp_path, damage):
    model, optimizers = made()
    train(model, optimizers, range(2))
    checkpoint.save(tmp_path / "whole", 2, model, optimizers, {"step": 2})
    want = states(*made(seed=0))
    train(model, optimizers, range(2, 4))
    newest = checkpoint.save(tmp_path / "whole", 4, model, optimizers, {"step": 4})
    names = sorted(file.name for file in newest.iterdir())
    assert ".metadata" in names and "manifest.json" in names and len(names) >= 3
    draw = random.Random(0)
    for trial, name in enumerate(names * 4):
        folder = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / "step-00000004" / name, draw)
        other, others = made(seed=0)
        with pytest.raises(TenfoldError, match=r"step-00000004 is damaged"):
            checkpoint.load(folder / "step-00000004", other, others)
        assert same(states(other, others), want)  # nothing of it was loaded
        with pytest.warns(UserWarning, match=r"step-00000004 is damaged; an earlier one is used"):
            assert checkpoint.restore_latest(folder, other, others) == {"step": 2}


def test_all_damaged_is_one_sentence(tmp_path):
    model, optimizers = made()
    for step in (1, 2):
        path = checkpoint.save(tmp_path, step, model, optimizers, {})
        next(path.glob("*.distcp")).write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(TenfoldError, match=r"Every checkpoint in .* is damaged"):
        checkpoint.restore_latest(tmp_path, model, optimizers)


def test_a_checkpoint_of_another_model_or_optimizer_says_so(tmp_path):
    model, optimizers = made()
    train(model, optimizers, range(1))
    path = checkpoint.save(tmp_path, 1, model, optimizers, {})
    wide, wide_optimizers = made(spec=llama_shape(32, 64))
    with pytest.raises(TenfoldError, match="does not fit this run's model or optimizer") as raised:
        checkpoint.load(path, wide, wide_optimizers)
    assert "\n" not in str(raised.value)
    with pytest.raises(TenfoldError, match="does not fit this run's model or optimizer"):
        checkpoint.load(path, *made("adamw"))


def fill(model, value):
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def save_without_end(directory, first):
    model, optimizers = made()
    train(model, optimizers, range(1))
    for step in range(first, first + 10_000):
        fill(model, step)
        checkpoint.save(directory, step, model, optimizers, {"step": step})


def test_kill_9_in_the_middle_of_saving_loses_nothing_that_was_saved(tmp_path):
    draw, last, half_written = random.Random(1), 0, 0
    context = multiprocessing.get_context("forkserver")  # a fork of this process would lack PyTorch's threads
    context.set_forkserver_preload([__name__])
    for _ in range(5):
        child = context.Process(target=save_without_end, args=(tmp_path, last + 1))
        child.start()
        deadline = time.monotonic() + 120
        while not (tmp_path / f"step-{last + 1:08d}").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        newest = int(checkpoint.latest(tmp_path).name.removeprefix("step-"))
        half_written += bool(list(tmp_path.glob(".step-*")))
        model, optimizers = made()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none may be taken for damaged
            extra = checkpoint.restore_latest(tmp_path, model, optimizers)
        assert newest <= extra["step"] <= newest + 1 and extra["step"] > last
        assert all((p == extra["step"]).all() for p in model.parameters())
        assert not list(tmp_path.glob(".step-*"))
        last = extra["step"]
    assert half_written  # else the kills missed what they are for


def test_a_kill_between_removing_an_old_one_and_renaming_its_successor_is_mended(tmp_path):
    model, optimizers = made()
    path = checkpoint.save(tmp_path, 3, model, optimizers, {"step": 3})
    path.rename(tmp_path / ".step-00000003")
    assert checkpoint.restore_latest(tmp_path, model, optimizers) == {"step": 3}
    assert checkpoint.latest(tmp_path) == path


def test_where_the_newest_is_damaged_here_the_stores_copy_of_it_is_used(tmp_path):
    model, optimizers = made()
    for step in (1, 2):
        store.upload(checkpoint.save(tmp_path / "run", step, model, optimizers, {"step": step}), str(tmp_path / "store"), 2)
    damaged = next((tmp_path / "run" / "step-00000002").glob("*.distcp"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert checkpoint.restore_latest(tmp_path / "run", model, optimizers, str(tmp_path / "store")) == {"step": 2}
    shutil.rmtree(tmp_path / "store")
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.warns(UserWarning, match="is damaged; an earlier one is used"):
        assert checkpoint.restore_latest(tmp_path / "run", model, optimizers, str(tmp_path / "store")) == {"step": 1}


def test_waiting_for_the_disk_alone_beats_no_watchdog(tmp_path, monkeypatch):
    beats = []
    monkeypatch.setattr(checkpoint, "_save", lambda *_: time.sleep(3 * checkpoint.LOOK_S))
    saver = checkpoint.Saver(tmp_path, 2, beat=lambda: beats.append(1))
    saver.save(1, *made(), {})
    saver.close()
    assert not beats


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small file system")
def test_a_full_disk_is_one_sentence_at_every_fill_and_earlier_ones_stay(tmp_path):
    model, optimizers = made()
    train(model, optimizers, range(1))
    fill(model, 1)
    size = sum(f.stat().st_size for f in checkpoint.save(tmp_path / "size", 1, model, optimizers, {}).iterdir())
    small = tmp_path / "disk"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={3 * size}", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        checkpoint.save(small / "run", 1, model, optimizers, {"step": 1})
        for share in (0.0, 0.02, 0.5, 0.95, 0.99):  # of the room that a checkpoint needs, left free
            free = shutil.disk_usage(small).free
            (small / "ballast").write_bytes(bytes(max(0, free - int(share * size))))
            fill(model, 2)
            with pytest.raises(TenfoldError, match=r"step 2 could not be saved .*: the disk is full; earlier ones are kept"):
                checkpoint.save(small / "run", 2, model, optimizers, {"step": 2})
            assert [p.name for p in (small / "run").iterdir()] == ["step-00000001"]
            (small / "ballast").unlink()
        assert checkpoint.restore_latest(small / "run", model, optimizers) == {"step": 1}
        assert all((p == 1).all() for p in model.parameters())
        checkpoint.save(small / "run", 2, model, optimizers, {"step": 2})  # there is room again
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_file_that_the_system_refuses_is_one_sentence(tmp_path):
    model, optimizers = made()
    train(model, optimizers, range(1))
    checkpoint.save(tmp_path, 1, model, optimizers, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(TenfoldError, match=r"step 2 could not be saved .* earlier ones are kept") as raised:
            checkpoint.save(tmp_path, 2, model, optimizers, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import fully_shard
from tenfold.spec.errors import TenfoldError
from tenfold.train import checkpoint

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)

def made(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 3))
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

def step(model, optimizer, seed):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()

def whole(model, optimizer):
    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))

model, optimizer = made(0)
for i in range(3):
    step(model, optimizer, i)
checkpoint.save(folder / "checkpoint", 3, model, optimizer, {"step": 3})
state = whole(model, optimizer)
if rank == 0:
    torch.save(state, folder / "whole.pt")
other, other_optimizer = made(1)
assert checkpoint.restore_latest(folder / "checkpoint", other, other_optimizer) == {"step": 3}
step(model, optimizer, 3)
step(other, other_optimizer, 3)
for p, q in zip(model.parameters(), other.parameters()):
    assert torch.equal(p.to_local(), q.to_local())
dist.barrier()
(folder / "file").touch()
try:
    checkpoint.save(folder / "file", 4, model, optimizer, {})
except TenfoldError:
    (folder / f"refused-{rank}").touch()
dist.destroy_process_group()
"""


def test_two_processes_save_their_shards_and_one_loads_the_whole(tmp_path):
    command = [sys.executable, "-c", SHARDED]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path)], env=quiet, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said
    assert len(list((tmp_path / "checkpoint" / "step-00000003").glob("*.distcp"))) == 2
    model = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert checkpoint.restore_latest(tmp_path / "checkpoint", model, optimizer) == {"step": 3}
    weights, state = torch.load(tmp_path / "whole.pt")
    assert same(dict(model.state_dict()), weights)
    names = [name for name, _ in model.named_parameters()]
    assert same({names[i]: s for i, s in optimizer.state_dict()["state"].items()}, state["state"])
    assert {p.name for p in Path(tmp_path).glob("refused-*")} == {"refused-0", "refused-1"}  # an error reaches both
