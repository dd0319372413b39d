"""What a run on a GPU is given, on a CPU: the same function of the same weights, to rounding."""

import copy
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from run_configs import run_config
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import flex_attention

from tenfold.model import loss
from tenfold.model.attention import attend, dense, document_blocks, document_mask
from tenfold.model.llama import Llama
from tenfold.model.llama4 import Llama4
from tenfold.model.moe import use_aux_loss
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.train.activation_checkpointing import checkpoint_activations
from tenfold.train.compile import compile_blocks, use_document_blocks
from tenfold.train.initial_weights import build
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.resolve import resolve
from tenfold.train.skipper import DeviceStepSkipper, HostStepSkipper
from tenfold.train.state import RunState
from tenfold.train.step import Step
from tenfold.train.tasks.pretrain import Pretraining, pretrain

SPEC = ModelSpec("model", dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=100)
EXPERTS = {"family": "llama4", "n_experts": 2, "expert_ffn_dim": 16, "attention_chunk": 96, "nope_every": 2}


def documents(rows: int, length: int, mean: int, seed: int = 0) -> torch.Tensor:
    ends = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 1 / mean
    return (ends.cumsum(1) - ends.long()).int()


def gradients(model, *inputs) -> list[torch.Tensor]:
    model.zero_grad()
    nats, extra = model.loss(*inputs)
    (nats + extra).backward()
    return [nats.detach(), *(p.grad.clone() for p in model.parameters())]


def inputs(length: int = 256, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 100, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


# Masks as blocks


@pytest.mark.parametrize("mean", [5, 60, 200, 5000])
def test_blocks_hold_exactly_what_the_mask_holds(mean):
    document = documents(3, 512, mean)
    wanted, blocks = document_mask(document), document_blocks(document)
    assert torch.equal(dense(blocks), wanted)
    tiles = wanted.unflatten(3, (4, 128)).unflatten(2, (4, 128)).transpose(3, 4).flatten(-2)
    any_, all_ = tiles.any(-1), tiles.all(-1)
    for b in range(3):
        for q in range(4):
            mixed = blocks.kv_indices[b, 0, q, : blocks.kv_num_blocks[b, 0, q]].tolist()
            full = blocks.full_kv_indices[b, 0, q, : blocks.full_kv_num_blocks[b, 0, q]].tolist()
            # The diagonal is never full, a tile that is full is never looked at, none with anything in it is left out.
            assert set(full) <= set(all_[b, 0, q].nonzero().flatten().tolist())
            assert set(full) | set(mixed) == set(any_[b, 0, q].nonzero().flatten().tolist())
            assert not set(full) & set(mixed)
    if mean == 5000:
        assert blocks.full_kv_num_blocks.sum() > 0


def test_the_kernels_own_reference_agrees_also_where_numbers_are_in_no_order():
    document = torch.randint(0, 3, (1, 256), generator=torch.Generator().manual_seed(0))
    q, k, v = torch.randn(3, 2, 2, 256, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = document_blocks(document)
    with torch.no_grad():
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=blocks), attend(q, k, v, document_mask(document)))
        torch.testing.assert_close(attend(q, k, v, blocks), attend(q, k, v, document_mask(document)))


@pytest.mark.parametrize("family", ["llama3", "llama4"])
def test_a_model_with_blocks_is_the_model_with_the_mask(family):
    torch.manual_seed(0)
    model = Llama(SPEC) if family == "llama3" else Llama4(ModelSpec(**(vars(SPEC) | EXPERTS)))
    other = copy.deepcopy(model)
    assert use_document_blocks(other, 256) and not use_document_blocks(copy.deepcopy(model), 200)
    for document in (documents(2, 256, 50), None):
        for a, b in zip(gradients(model, *inputs(), document), gradients(other, *inputs(), document), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# The loss


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_fused_loss_and_its_gradients_equal_pytorchs_in_float64(monkeypatch, z_loss):
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": 128 * 4 * 50})
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 16, generator=draw).requires_grad_()
    weight = torch.randn(50, 16, generator=draw).requires_grad_()
    targets = torch.randint(0, 50, (300,), generator=draw)
    targets[::7] = -100
    nats, z_term = loss._FusedCrossEntropy.apply(hidden, weight, targets, z_loss)
    ((nats + z_term) / 300).backward()

    h, w = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = h @ w.T
    expected = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    expected_z = z_loss * (logits.logsumexp(-1).square() * (targets >= 0)).sum()
    ((expected + expected_z) / 300).backward()
    for a, b in ((nats, expected), (z_term, expected_z), (hidden.grad, h.grad), (weight.grad, w.grad)):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


# Recompute and compilation


@pytest.mark.parametrize(
    ("what", "compiled"), [("none", False), ("selective", False), ("full", False), ("selective", True), ("full", True)]
)
def test_recompute_changes_no_gradient_and_keeps_less(what, compiled):
    torch.manual_seed(0)
    model = Llama(SPEC)
    other = copy.deepcopy(model)
    checkpoint_activations(other, what)
    if compiled:
        compile_blocks(other, backend="aot_eager")
    for a, b in zip(gradients(model, *inputs(64)), gradients(other, *inputs(64)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if not compiled:
        bytes_of = {m: kept_bytes(m) for m in (model, other)}
        share = {"none": (1, 1), "selective": (0.2, 0.8), "full": (0, 0.3)}[what]
        assert share[0] * bytes_of[model] <= bytes_of[other] <= share[1] * bytes_of[model]


def kept_bytes(model) -> int:
    """Of what the blocks keep for the backward pass, weights left out."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = model.hidden(inputs(64)[0])
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("what", "most"), [("selective", 0.8), ("full", 0.5)])
@pytest.mark.parametrize("compiled", [False, True])
def test_experts_worked_out_again_give_the_same_and_count_their_load_once(what, most, compiled):
    torch.manual_seed(0)
    model = Llama4(ModelSpec(**(vars(SPEC) | EXPERTS)))
    use_aux_loss(model, 0.01)
    other = copy.deepcopy(model)
    checkpoint_activations(other, what)
    for m in (model, other) if compiled else ():
        compile_blocks(m, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=compiled):  # compiled, grouped products are in bfloat16 alone
        once, again = (gradients(m, *inputs(64)) for m in (model, other))
    for a, b in zip(once, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [int(block.ffn.load.sum()) for block in other.layers] == [2 * 64] * 2
    if not compiled:
        assert kept_bytes(other) <= most * kept_bytes(model)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiled_kernel_skips_what_the_blocks_leave_out_and_is_compiled_once():
    torch._dynamo.reset()  # what other tests of this process have compiled is not counted
    counter = CompileCounterWithBackend("inductor")
    kernel = torch.compile(lambda q, k, v, mask: flex_attention(q, k, v, block_mask=mask), backend=counter, dynamic=False)
    with torch.no_grad():
        for seed in range(3):
            document = documents(2, 256, 40, seed)
            q, k, v = torch.randn(3, 2, 2, 256, 16, generator=torch.Generator().manual_seed(seed))
            expected = attend(q, k, v, document_mask(document))
            torch.testing.assert_close(kernel(q, k, v, document_blocks(document)), expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiled_loss_is_the_loss():
    logits = 3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    index, ignored = torch.arange(64)[:, None] % 50, torch.arange(64) % 7 == 0
    compiled = loss._compiled_gradient()(logits, index, ignored, 1e-3)
    for a, b in zip(compiled, loss.fused_gradient(logits, index, ignored, 1e-3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_masks_of_new_documents_compile_nothing_new():
    torch._dynamo.reset()  # what other tests of this process have compiled is not counted
    torch.manual_seed(0)
    model, counter = Llama(SPEC), CompileCounterWithBackend("eager")
    use_document_blocks(model, 256)
    compile_blocks(model, backend=counter, dynamic=False)
    for seed in range(3):
        model.loss(*inputs(), documents(2, 256, 40, seed))[0].backward()
        assert counter.frame_count == 2  # one for every block, and the last norm


# Steps that do not wait


class Counted:
    """A skipper's state and optimizer, and whether a step changed the weights."""

    def __init__(self, kind):
        self.p = torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
        self.optimizer = torch.optim.AdamW([self.p], lr=0.1, fused=True)
        self.state = RunState()
        arguments = (torch.device("cpu"),) if kind is DeviceStepSkipper else ()
        self.skipper = kind(self.state, 20, *arguments)

    def take(self, loss, norm):
        self.p.grad = torch.full_like(self.p, math.nan if math.isnan(norm) else 1.0)
        before = self.p.detach().clone()
        self.skipper.take([self.optimizer], torch.tensor(loss), torch.tensor(norm))
        self.skipper.read()
        self.state.step += 1
        return not torch.equal(before, self.p)


@pytest.mark.parametrize("kind", [HostStepSkipper, DeviceStepSkipper])
def test_a_step_is_skipped_by_one_rule_on_the_host_and_on_the_device(kind):
    counted, usual, skipped, in_a_row = Counted(kind), 0.0, 0, 0
    for step in range(40):
        norm, value = (1.0 + 0.1 * step, 2.0)
        norm = {3: math.nan, 10: 500.0, 30: 500.0, 31: 400.0, 35: math.inf}.get(step, norm)
        value = math.inf if step == 20 else value
        changed = counted.take(value, norm)
        good = math.isfinite(norm) and math.isfinite(value) and not (step > 20 and norm > 30.0 * usual)
        if good:
            usual, in_a_row = (norm if usual == 0 else 0.95 * usual + 0.05 * norm), 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
        assert changed == good
        state = counted.state
        assert (state.usual_norm, state.skipped, state.skipped_in_a_row) == (pytest.approx(usual), skipped, in_a_row)
    assert skipped >= 3 and counted.optimizer.state[counted.p]["step"] == 40 - skipped


@pytest.mark.parametrize("kind", [HostStepSkipper, DeviceStepSkipper])
def test_a_run_that_never_recovers_ends_with_the_same_sentence(kind):
    counted = Counted(kind)
    with pytest.raises(TenfoldError, match="at step 19: 20 steps in a row .* lower learning_rate"):
        for _ in range(30):
            counted.take(math.nan, 1.0)


def test_steps_that_the_device_decides_are_those_that_the_host_decides(corpus):
    config = run_config(
        tokens=10_000, model={"width": 16}, seq_len=64, batch_size=4, dtype="float32", optimizer="adamw", device="cpu"
    )
    weights = []
    for kind in (HostStepSkipper, DeviceStepSkipper):
        task = Pretraining(config, corpus, corpus.directory)
        r = resolve(config, task.vocab_size)
        torch.manual_seed(0)
        model = build(r.spec, None, r.device)
        optimizers = make_optimizers(model, r.spec, r.h, "adamw")
        state = RunState()
        skipper = kind(state, 20, *((r.device,) if kind is DeviceStepSkipper else ()))
        step = Step(task, model, optimizers, skipper, r.h, config.optimizer, r.device, read_every=5)
        outputs = []
        for number in range(10):
            rows = task.rows(number, slice(0, 4))
            outputs.append(step(rows, number, rows.weight()))
            state.step += 1
        assert [o.loss is None for o in outputs] == [kind is DeviceStepSkipper and (i + 1) % 5 != 0 for i in range(10)]
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_run_that_checkpoints_activations_learns_the_same(corpus, tmp_path):
    fields = {"tokens": 4000, "model": {"width": 16}, "seq_len": 64, "batch_size": 4, "evaluate_tokens": 2048, "dtype": "float32"}
    kept, again = (
        pretrain(run_config(activation_checkpointing=what, **fields), corpus, tmp_path / what, quiet=True).loss
        for what in ("none", "full")
    )
    assert again == pytest.approx(kept, rel=1e-6)
