"""Losses beside TRL's own trainers: on equal log-probabilities, and of a whole batch through a model."""

import json
from types import SimpleNamespace

import pytest
import torch
from chat_models import TEMPLATE, chat_model
from transformers import AutoModelForCausalLM, AutoTokenizer

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
        return SimpleNamespace(
            log_probs=self.given, entropy=zeros, mean_token_accuracy=zeros, num_correct_tokens=zeros, logits=zeros
        )


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
