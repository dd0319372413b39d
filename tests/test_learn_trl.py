"""Losses beside TRL's own trainers: on equal log-probabilities, and of a whole batch through a model."""

import json
from types import SimpleNamespace

import pytest
import torch
from chat_models import TEMPLATE, chat_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tenfold.learn.tasks import objectives
from tenfold.model.io.huggingface import read_model
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
CPU = torch.device("cpu")
ASKED = ["Hello there", "What is 3 + 4?", "The capital of Peru is", "Which number is larger?", "How are you?", "Reply alone."]


def said(role, content):
    return [{"role": role, "content": content}]


def pairs():
    return [
        {
            "prompt": said("user", ask),
            "chosen": said("assistant", "Lima. " * (i + 1)),
            "rejected": said("assistant", "7 " * (5 - i) + "?"),
        }
        for i, ask in enumerate(ASKED)
    ]


def rated():
    return [
        {"prompt": said("user", ask), "completion": said("assistant", f"Hello {i}. " * (1 + i % 3)), "label": i % 3 > 0}
        for i, ask in enumerate(ASKED)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The reference, and the policy that is trained. Their template has nothing behind a stop token, which TRL would learn too."""
    home, template = tmp_path_factory.mktemp("models"), TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")
    return chat_model(home / "reference", template=template), chat_model(home / "policy", seed=1, template=template)


class Outputs(torch.nn.Module):
    """A model whose log-probabilities are given."""

    def __init__(self, log_probs):
        super().__init__()
        self.given = log_probs

    def forward(self, **inputs):
        zeros = torch.zeros_like(self.given)
        return SimpleNamespace(log_probs=self.given, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def their_trainer(kind, models, tmp_path, rows, **more):
    reference, policy = models
    names = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "kto": (trl.KTOTrainer, trl.KTOConfig)}
    trainer, config = names[kind]
    args = config(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=len(rows),
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **more,
    )
    load = AutoModelForCausalLM.from_pretrained
    model, ref = (load(path, dtype=torch.float32) for path in (policy, reference))
    tokenizer = AutoTokenizer.from_pretrained(policy)
    return trainer(
        model=model, ref_model=ref, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )


def our_task(kind, models, tmp_path, rows, **settings):
    """The task, and its rows of one batch that has all examples."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = str(tmp_path / "rows.jsonl")
    task = {"name": kind, "validation": corpus, **settings}
    fields = {
        "tokens": 96,
        "init_from": str(models[0]),
        "dtype": "float32",
        "task": task,
        "data": {"corpus": corpus, "seq_len": 96, "batch_size": 1, "max_epochs": 99},
    }
    found = open_task(config_from_fields(fields, "test"), tmp_path, quiet=True)
    packed = found._rows(found.train, found._reference[0])
    assert packed.weight() == len(rows) and len(packed) > 1
    return found, packed


def loss_and_gradient(task, rows, model):
    sums = task.loss(model, rows.on(CPU, slice(None)))
    (sums.loss / rows.weight()).backward()
    return float(sums.loss.detach()) / rows.weight(), model.embedding.weight.grad


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "sigmoid_norm"])
def test_dpo_of_a_batch_is_trls_through_the_model(models, tmp_path, kind):
    theirs = their_trainer("dpo", models, tmp_path, pairs(), loss_type=[kind], max_length=96)
    batch = next(iter(theirs.get_train_dataloader()))
    loss = theirs.compute_loss(theirs.model, batch)
    loss.backward()
    task, rows = our_task("dpo", models, tmp_path, pairs(), loss_type=kind)
    ours, gradient = loss_and_gradient(task, rows, read_model(models[1]))
    assert ours == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(gradient, theirs.model.get_input_embeddings().weight.grad, atol=1e-4 * gradient.abs().max())


def test_kto_of_a_batch_is_trls_through_the_model(models, tmp_path):
    theirs = their_trainer("kto", models, tmp_path, rated(), max_length=96)
    batch = next(iter(theirs.get_train_dataloader()))
    loss = theirs.compute_loss(theirs.model, batch)
    loss.backward()
    task, rows = our_task("kto", models, tmp_path, rated())
    ours, gradient = loss_and_gradient(task, rows, read_model(models[1]))
    assert ours == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(gradient, theirs.model.get_input_embeddings().weight.grad, atol=1e-4 * gradient.abs().max())


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "sigmoid_norm"])
def test_dpo_is_trls_on_equal_log_probabilities(models, tmp_path, kind):
    theirs = their_trainer("dpo", models, tmp_path, pairs(), loss_type=[kind], max_length=96, beta=0.3)
    batch = next(iter(theirs.get_train_dataloader()))
    given, mask = log_probs_of(batch)
    reference = -5 * torch.rand(2, len(pairs()), generator=torch.Generator().manual_seed(2))
    theirs.precompute_ref_logps = True
    batch |= {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
    loss = theirs._compute_loss(Outputs(given), batch, return_outputs=False)
    ratios, lengths = given.sum(1).view(2, -1) - reference, mask.sum(1).view(2, -1)
    ours = objectives.dpo(ratios[0], ratios[1], (lengths[0], lengths[1]), 0.3, kind).mean()
    assert float(ours) == pytest.approx(float(loss), abs=1e-6)


def test_kto_is_trls_on_equal_log_probabilities(models, tmp_path):
    theirs = their_trainer("kto", models, tmp_path, rated(), max_length=96, beta=0.3, desirable_weight=0.7)
    batch = next(iter(theirs.get_train_dataloader()))
    given, _ = log_probs_of(batch)
    draw = torch.Generator().manual_seed(2)
    reference, mismatched, other = (-5 * torch.rand(len(rated()), generator=draw) for _ in range(3))
    theirs.precompute_ref_logps = True
    theirs._compute_kl_logps = lambda model, batch: mismatched
    batch |= {"ref_logps": reference, "ref_KL_logps": other}
    loss = theirs._compute_loss(Outputs(given), batch, return_outputs=False)
    good = torch.as_tensor(batch["label"]).bool()
    ours = objectives.kto(given.sum(1) - reference, good, mismatched - other, 0.3, (0.7, 1.0)).mean()
    assert float(ours) == pytest.approx(float(loss), abs=1e-6)


def test_rows_without_an_example_have_no_loss_and_no_gradient_in_kto():
    """A process of several may have no example in the last rows of a step."""
    ratios = torch.randn(2, requires_grad=True)
    losses = objectives.kto(ratios, torch.tensor([True, False]), torch.empty(0), 0.3)
    torch.where(torch.tensor([False, False]), losses, 0.0).sum().backward()
    assert torch.equal(ratios.grad, torch.zeros(2))


def log_probs_of(batch):
    """Log-probabilities that are zero where a batch learns nothing, and what it learns."""
    mask = batch["completion_mask"][:, 1:]
    return -torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * mask, mask


@pytest.mark.parametrize("kind", ["dapo", "dr_grpo", "bnpo", "grpo"])
def test_grpo_is_trls_on_equal_log_probabilities(models, tmp_path, kind):
    draw = torch.Generator().manual_seed(3)
    mask = torch.arange(7) < torch.tensor([[7], [3], [5], [1]])
    new, old, reference, sampled = (-3 * torch.rand(4, 7, generator=draw) for _ in range(4))
    advantage = torch.randn(4, generator=draw)
    names = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.1}
    args = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, loss_type=kind, max_completion_length=7,
        use_cpu=True, bf16=False, report_to=[], **names,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": "Hello"}] * 8)
    theirs = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32), reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(models[0]),
    )  # fmt: skip
    weight = (old - sampled).mul(mask).sum(1, keepdim=True).exp().expand(4, 7)
    weight = weight.masked_fill(weight > 3, 0)
    theirs.use_vllm, theirs.vllm_importance_sampling_correction = True, True
    theirs.current_gradient_accumulation_steps = 1
    theirs._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros_like(new), None)
    ids = torch.zeros(4, 7, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": torch.ones(4, 1), "completion_ids": ids, "completion_mask": mask.int(), "advantages": advantage,
        "old_per_token_logps": old, "ref_per_token_logps": reference, "importance_sampling_ratio": weight, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss = theirs._compute_loss(theirs.model, inputs)
    answer = torch.arange(4)[:, None].expand(4, 7)[mask]
    ours_weight = objectives.importance(objectives.ratios((old - sampled)[mask], answer, 4, "sequence_mask"), "sequence_mask", 3.0)
    losses = ours_weight * objectives.clipped((new - old)[mask].exp(), advantage[answer], 0.2, 0.28)
    losses = losses + 0.1 * objectives.kl_to(reference[mask], new[mask], (new - old)[mask].exp())
    ours = objectives.reduced(losses, answer, 4, kind) / objectives.divisor(kind, int(mask.sum()), 4, 7)
    assert float(ours) == pytest.approx(float(loss), abs=1e-6)


def test_advantages_are_trls():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    scaled = objectives.advantages(rewards, scaled=True)
    assert torch.allclose(scaled[0], (rewards[0] - 0.5) / (rewards[0].std() + 1e-4)) and not scaled[1].any()
    assert torch.equal(objectives.advantages(rewards, scaled=False)[0], rewards[0] - 0.5)
