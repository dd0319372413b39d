"""Layouts: on several processes a run has the losses, gradients and weights of one process, and resumes in another layout."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_configs import run_config
from safetensors.torch import load_file

from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import for_world
from tenfold.train.metrics import read_metrics
from tenfold.train.parallel.dims import ParallelDims

DENSE = {
    "name": "tiny", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 64, "vocab_size": 400,
}  # fmt: skip
ROUTED = {
    **DENSE,
    "family": "llama4",
    "n_experts": 4,
    "expert_ffn_dim": 32,
    "attention_chunk": 32,
    "nope_every": 2,
    "qk_norm": True,
}
RUN = {
    "seq_len": 64, "batch_size": 8, "tokens": 20 * 8 * 64, "evaluate_tokens": 2048, "log_every": 1, "z_loss": 1e-4, "dtype": "float32",
    "device": "cpu", "compile": "off",
}  # fmt: skip
MODELS = {
    "dense": {**RUN, "model": DENSE},
    "adamw": {**RUN, "model": DENSE, "optimizer": "adamw", "micro_batch": 2},
    "uneven": {**RUN, "model": DENSE, "batch_size": 7, "tokens": 20 * 7 * 64, "micro_batch": 2},
    "tied": {**RUN, "model": {**DENSE, "tied": True}},
    "routed": {**RUN, "model": ROUTED},
    "few-routed": {**RUN, "model": {**ROUTED, "n_experts": 2}},  # fewer than processes
    "deep": {**RUN, "model": {**DENSE, "n_layers": 5}},
    "deep-tied": {**RUN, "model": {**DENSE, "n_layers": 5, "tied": True}},
    "deep-routed": {**RUN, "model": {**ROUTED, "n_layers": 5, "moe_every": 2}},
    "deep-uneven": {**RUN, "model": {**DENSE, "n_layers": 4}, "batch_size": 7, "tokens": 20 * 7 * 64, "micro_batch": 2},
}
LAYOUTS = {
    "fsdp": {"dp_shard": 4},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2},
    "ddp": {"dp_replicate": 4, "dp_shard": 1},
    "context": {"cp": 4},
    "tensor": {"tp": 4},
    "fsdp-context": {"dp_shard": 2, "cp": 2},
    "fsdp-tensor": {"dp_shard": 2, "tp": 2},
    "replicate-context": {"dp_replicate": 2, "cp": 2},
    "replicate-tensor": {"dp_replicate": 2, "tp": 2},
    "context-tensor": {"cp": 2, "tp": 2},
    "pipeline": {"pp": 4},
    "pipeline-fsdp": {"pp": 2, "dp_shard": 2},
    "pipeline-ddp": {"pp": 2, "dp_replicate": 2, "dp_shard": 1},
    "pipeline-context": {"pp": 2, "cp": 2},
    "pipeline-tensor": {"pp": 2, "tp": 2},
    "interleaved-fsdp": {"pp": 2, "dp_shard": 2, "schedule": "interleaved"},
    "interleaved-tensor": {"pp": 2, "tp": 2, "schedule": "interleaved"},
    "zero-bubble-fsdp": {"pp": 2, "dp_shard": 2, "schedule": "zero_bubble"},
    "zero-bubble-context": {"pp": 2, "cp": 2, "schedule": "zero_bubble"},
    "expert": {"dp_shard": 4, "ep": 2},
    "all-expert": {"dp_shard": 4, "ep": 4},
    "hsdp-expert": {"dp_replicate": 2, "dp_shard": 2, "ep": 2},
    "context-expert": {"dp_shard": 2, "cp": 2, "ep": 2},
    "tensor-expert": {"dp_shard": 2, "tp": 2, "ep": 2},
    "tensor-all-expert": {"dp_shard": 2, "tp": 2, "ep": 4},
    "pipeline-expert": {"pp": 2, "dp_shard": 2, "ep": 2},
    "pipeline-context-expert": {"pp": 2, "cp": 2, "ep": 2},
    "pipeline-tensor-expert": {"pp": 2, "tp": 2, "ep": 2},
    "interleaved-expert": {"pp": 2, "dp_shard": 2, "ep": 2, "schedule": "interleaved"},
    "zero-bubble-expert": {"pp": 2, "dp_shard": 2, "ep": 2, "schedule": "zero_bubble"},
}
AGAIN = (
    "fsdp-tensor",
    "hsdp-expert",
    "context-expert",
    "pipeline-tensor-expert",
)  # that also work blocks out again in their backward passes
LINES = [name for name in LAYOUTS if "pipeline" in LAYOUTS[name]]
CASES = [(m, name) for m in MODELS for name in LAYOUTS if name not in LINES and (m == "routed" or "expert" not in name)]
CASES += [(m, name) for m in ("deep", "deep-uneven", "deep-tied") for name in LINES if "expert" not in name]
CASES += [("deep-routed", name) for name in LINES]
QUICK = [
    ("dense", "context-tensor"), ("adamw", "fsdp-tensor"), ("routed", "hsdp-expert"), ("few-routed", "fsdp-context"),
    ("deep-uneven", "zero-bubble-context"), ("deep-tied", "pipeline"), ("routed", "tensor-expert"),
    ("deep-routed", "pipeline-tensor-expert"),
]  # fmt: skip

PROCESS = """
import json, os, sys
sys.path.insert(0, os.environ["TESTS"])
from pathlib import Path
import torch
# All in double precision, whatever names single: rounding is then far below what is compared.
torch.float32 = torch.float64
torch.Tensor.float = torch.Tensor.double
torch._grouped_mm = lambda x, w, offs: torch.cat(
    [part @ one for part, one in zip(x.tensor_split(offs[:-1].tolist()), w)]  # PyTorch's takes single precision at most
)
torch.set_default_dtype(torch.float64)
from tenfold.train.tasks import pretrain as task
single = task.normalised
task.normalised = lambda tiles: single(tiles).astype("float64")
torch.set_num_threads(1)
from tenfold.data.text.corpus import open_corpus
from run_configs import run_config
corpus, folder = open_corpus(Path(sys.argv[1])), Path(sys.argv[2])
for name, fields in json.loads(sys.argv[3]):
    task.pretrain(run_config(**fields), corpus, folder / name, quiet=True)
"""


def run_on(processes, corpus, folder, jobs):
    """Start one set of processes and train all `jobs` [(name, fields)] in it, one after another."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "TESTS": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-c", PROCESS, str(corpus.directory), str(folder), json.dumps(jobs)]
    started = [
        subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True)
        for r in range(processes)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=900)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run_on(1, corpus, folder, list(MODELS.items()))
    return folder


def check(one, many):
    a, b = ([e for e in read_metrics(d / "run.jsonl") if e["event"] == "step"] for d in (one, many))
    assert len(a) == len(b) == 20
    for x, y in zip(a, b, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-9)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-6)
        assert y.get("expert_load") == x.get("expert_load")  # of all layers and all rows, wherever they are
    assert a[-1]["loss"] < a[0]["loss"] - 0.1
    x, y = (load_file(d / "model" / "model.safetensors") for d in (one, many))
    assert x.keys() == y.keys()
    for name in x:
        assert (x[name] - y[name]).norm() <= 1e-6 * x[name].norm(), name


ALL = [pytest.param([c for c in CASES if c[0] == m and c not in QUICK], marks=pytest.mark.slow, id=m) for m in MODELS]


@pytest.mark.parametrize("cases", [pytest.param(QUICK, id="few"), *ALL])
def test_every_layout_has_the_numbers_of_one_process(corpus, alone, tmp_path, cases):
    again = {name: "full" if name in AGAIN else "none" for name in LAYOUTS}
    jobs = [(f"{m}-{name}", {**MODELS[m], "activation_checkpointing": again[name], "parallel": LAYOUTS[name]}) for m, name in cases]
    run_on(4, corpus, tmp_path, jobs)
    for m, name in cases:
        check(alone / m, tmp_path / f"{m}-{name}")


SEEING = {**RUN, "seq_len": 48, "tokens": 20 * 8 * 48, "image_share": 0.4, "micro_batch": 1}
SEEING |= {"vision": {"image_size": 16, "patch_size": 4, "dim": 32, "n_layers": 1, "n_heads": 2}}


@pytest.mark.slow
def test_images_too(corpus, drawings, tmp_path):
    model = {name: value for name, value in ROUTED.items() if name != "vocab_size"}
    seeing = {**SEEING, "model": model, "images": str(drawings)}
    run_on(1, corpus, tmp_path / "one", [("alone", seeing)])
    layouts = ("context-tensor", "hsdp-expert")
    run_on(4, corpus, tmp_path / "many", [(name, {**seeing, "parallel": LAYOUTS[name]}) for name in layouts])
    (alone,) = [e for e in read_metrics(tmp_path / "one" / "alone" / "run.jsonl") if e["event"] == "end"]
    for name in layouts:
        check(tmp_path / "one" / "alone", tmp_path / "many" / name)
        (many,) = [e for e in read_metrics(tmp_path / "many" / name / "run.jsonl") if e["event"] == "end"]
        for what in ("image_bits_per_byte", "image_bits_per_byte_shuffled"):
            assert many["scores"][what] == pytest.approx(alone["scores"][what], rel=1e-6)


@pytest.mark.parametrize(
    "layout, says",
    [
        ({"dp_shard": 3}, "= 3 processes, but there are 4"),
        ({"tp": 3}, "= 3 processes, but there are 4"),
        ({"dp_replicate": 0}, "dp_replicate in the table .parallel. must be a whole number >= 1, not 0"),
        ({"pp": 3}, "pp 3 x .* = 3 processes, but there are 4"),
    ],
)
def test_a_layout_that_does_not_fit_the_world_is_one_sentence(layout, says):
    with pytest.raises(TenfoldError, match=says) as raised:
        for_world(run_config(tokens=1, parallel=layout).parallel, 4)
    assert "\n" not in str(raised.value)


def test_the_rows_of_all_places_are_the_batch_once():
    for batch, data in ((8, 4), (7, 4), (5, 2), (3, 3)):
        places = [ParallelDims(data=data, data_rank=r) for r in range(data)]
        parts = [range(batch)[place.rows(batch)] for place in places]
        assert [row for part in parts for row in part] == list(range(batch))
        assert all(0 < len(part) <= places[0].most_rows(batch) for part in parts)
