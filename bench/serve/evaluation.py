"""lm_eval through `tenfold serve`, compared item by item with lm_eval's own `hf` model on the same weights.

    python -m bench.serve.evaluation                       # SmolLM2-135M-Instruct, 40 items of each task
    python -m bench.serve.evaluation --model MODEL --limit 4

`local-completions` chooses among answers, scores whole texts and generates; `local-chat-completions` generates with the chat
template. The items are made here; nothing is downloaded. Log-likelihoods are equal if they agree to 1e-3, texts if they are
identical.
"""

import inspect
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from bench.harness import Row, options, write_results
from bench.learn.questions import CAPITALS, questions
from bench.serve.server import serving
from tenfold.learn.walk import smollm2, unpacked

TOLERANCE = 1e-3
LOCAL = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: {text}
"""
CHOSEN = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{choices.index(answer)}}"
metric_list: [{metric: acc}]
"""
WRITTEN = """output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}]
"""
READ = """output_type: loglikelihood_rolling
doc_to_target: "{{prompt}}"
metric_list: [{metric: byte_perplexity}]
"""
TASKS = {"local-completions": ("choices", "texts", "sums"), "local-chat-completions": ("sums", "capitals", "sentences")}
ROUTES = {"local-completions": "completions", "local-chat-completions": "chat/completions"}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="a model in Hugging Face layout; by default SmolLM2-135M-Instruct")
    parser.add_argument("--limit", type=int, default=40, help="items of each task")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with TemporaryDirectory() as home:
        model = given.model or unpacked(smollm2(), Path(home) / "smollm2")
        write_tasks(Path(home))
        with serving(model, "--any-name", "--kv-cache-gib", "0.5", "--threads", str(given.threads), "--feedback", "") as (url, _):
            rows = list(compared(model, url, Path(home), given.limit))
    equal, items = (sum(row[name] for row in rows) for name in ("equal", "items"))
    what = "items on which lm_eval finds the same through the API as by its own hf (to 1e-3)"
    print(write_results("evaluation", rows, [(what, f"{equal} of {items}")]))


def write_tasks(folder: Path) -> None:
    """Write task files for lm_eval, each with its items beside it."""
    asked = questions(83)
    sums = [{"prompt": q.prompt, "answer": q.answer} for q in asked if "+" in q.prompt]
    capitals = [{"prompt": q.prompt, "answer": q.answer} for q in asked if "capital" in q.prompt]
    choices = [{"prompt": q.prompt, "answer": f" {q.answer}", "choices": [f" {q.answer}", " 99", " Bern"]} for q in asked]
    sentences = [{"prompt": f"Write one sentence about {land}.", "answer": ""} for land in CAPITALS]
    texts = [{"prompt": inspect.getdoc(member)} for kind in (str, list, dict) for _, member in inspect.getmembers(kind)]
    _write(folder, "choices", choices, CHOSEN)
    _write(folder, "texts", [row for row in texts if row["prompt"]], READ)
    for name, rows in (("sums", sums), ("capitals", capitals), ("sentences", sentences)):
        _write(folder, name, rows, WRITTEN)


def _write(folder: Path, name: str, rows: Sequence[Row], kind: str) -> None:
    items = folder / f"{name}.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "''" if kind is READ else '"{{prompt}}"'
    (folder / f"{name}.yaml").write_text(LOCAL.format(name=name, rows=items, text=text) + kind)


def compared(model: Path, url: str, folder: Path, limit: int) -> Iterator[Row]:
    """A row for each client and task."""
    reference = {"pretrained": str(model), "dtype": "float32", "device": "cpu"}
    tokens = {"tokenizer": str(model), "tokenizer_backend": "huggingface"}
    for client, tasks in TASKS.items():
        chats = client == "local-chat-completions"
        asked = {"model": model.name, "base_url": f"{url}/v1/{ROUTES[client]}", **({} if chats else tokens)}
        expected = evaluated("hf", reference, tasks, folder, limit, chats)
        found = evaluated(client, asked, tasks, folder, limit, chats)
        for task in tasks:
            yield {"client": client, "task": task, **difference(expected["samples"][task], found["samples"][task])}


def evaluated(lm: str, arguments: dict[str, Any], tasks: Sequence[str], folder: Path, limit: int, chats: bool) -> dict[str, Any]:
    """lm_eval's results, with its samples."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    said = lm_eval.simple_evaluate(
        lm, arguments, tasks=list(tasks), limit=limit, task_manager=manager, apply_chat_template=chats, bootstrap_iters=0
    )
    assert said is not None
    return said


def difference(expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> Row:
    """The number of equal items, and the largest difference of log-likelihoods."""
    apart = [
        max(_apart(a, b) for a, b in zip(_leaves(one["resps"]), _leaves(other["resps"]), strict=True))
        for one, other in zip(_by_item(expected), _by_item(found), strict=True)
    ]
    numbers = [value for value in apart if math.isfinite(value)]
    return {
        "items": len(apart),
        "equal": sum(value <= TOLERANCE for value in apart),
        "largest_difference": max(numbers, default=None),
    }


def _by_item(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: sample["doc_id"])


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers and texts of nested lists."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _apart(one: Any, other: Any) -> float:
    """The difference of two numbers; of other values 0 if they are equal, else infinity."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else math.inf


if __name__ == "__main__":
    main()
