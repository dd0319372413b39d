"""lm-eval on the serving engine, beside lm-eval's own backend for Hugging Face models and beside a server."""

import json
import re

import pytest
from chat_models import chat_model

from bench.learn.questions import questions
from tenfold.learn.options import TaskOptions
from tenfold.serve.options import EngineOptions
from tenfold.serve.start import serving
from tenfold.spec.errors import TenfoldError

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from tenfold.learn.harness import EngineLM, differences, harness  # noqa: E402

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
"""
CHOSEN = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{choices.index(answer)}}"
metric_list: [{metric: acc}]
"""
WRITTEN = """output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [chat_model(folder / str(seed), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with a task of choices and one of answers that are written."""
    folder, asked = tmp_path_factory.mktemp("tasks"), questions(24)
    rows = [{"prompt": q.prompt, "answer": f" {q.answer}", "choices": [f" {q.answer}", " 99", " Bern"]} for q in asked]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind in (("own_choice", CHOSEN), ("own_written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, rows=folder / "rows.jsonl") + kind)
    return folder


def requests(kind, *arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_the_engine_answers_as_transformers_does(models):
    """Empty and long contexts, spaces at the seam, whole texts longer than the context, and stop strings."""
    ours = EngineLM(models[0])
    theirs = HFLM(str(models[0]), dtype="float32", device="cpu", batch_size=1, max_length=ours.engine.max_model_len - 1)
    pairs = [
        ("What is 3 + 4?", " 7"),
        ("The capital of ", "Peru"),
        ("", "Hello there"),
        ("Which number is larger? " * 60, "the first"),
    ]
    greedy = ours.generate_until(requests("generate_until", ("Hello", {"until": [], "max_gen_toks": 2, "do_sample": False})))[0]
    pairs.append(("Hello", greedy))
    found, known = (lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True) for lm in (ours, theirs))
    assert [one[0] for one in found] == pytest.approx([one[0] for one in known], abs=2e-3)
    assert [one[1] for one in found] == [one[1] for one in known]
    texts = [("Hello there, how are you? " * 60,), ("Lima",)]
    rolled = [lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True) for lm in (ours, theirs)]
    assert rolled[0] == pytest.approx(rolled[1], rel=1e-4)
    whole = theirs.generate_until(requests("generate_until", ("How are", {"until": [], "max_gen_toks": 24, "do_sample": False})))[0]
    for stop in ([], re.findall("[a-z]{2}", whole)[-1:]):
        asked = requests("generate_until", *(("How are", {"until": stop, "max_gen_toks": 24, "do_sample": False}),) * 2)
        assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_tasks_in_process_and_through_the_api_agree_and_models_are_compared_by_document(models, tasks):
    names = ("own_choice", "own_written")
    here = harness(models[0], TaskOptions(tasks=(",".join(names),), include_path=tasks, limit=16), models[1])
    with serving({"m": EngineOptions(models[0], kv_cache_gib=0.05, threads=1)}) as url:
        there = harness(models[0], TaskOptions(tasks=names, include_path=tasks, limit=16, api=url), models[1])
    assert here.keys() == there.keys() == set(names)
    for name in names:
        assert here[name]["metrics"] == pytest.approx(there[name]["metrics"], nan_ok=True) and here[name]["documents"] == 16
        assert here[name]["against"] == there[name]["against"]
    beside = here["own_choice"]["against"]["acc,none"]
    other = harness(models[1], TaskOptions(tasks=names, include_path=tasks, limit=16))
    assert beside["n"] == 16 and 0 <= beside["lost_p"] <= 1
    assert beside["mean"] == pytest.approx(here["own_choice"]["metrics"]["acc,none"] - other["own_choice"]["metrics"]["acc,none"])


def test_differences_pair_the_same_documents():
    old, new = {str(i): float(i < 6) for i in range(12)}, {str(i): float(i < 9) for i in reversed(range(12))}
    assert differences(old, new)["mean"] == 0.25 and differences(old, new)["lost_p"] == 1
    assert "lost_p" not in differences(old, {name: value / 2 for name, value in new.items()})


def test_a_task_that_there_is_not_is_refused_in_a_sentence(models, tasks):
    with pytest.raises(TenfoldError, match="lm-eval has no task 'own_choices'"):
        harness(models[0], TaskOptions(tasks=("own_choices",), include_path=tasks))
