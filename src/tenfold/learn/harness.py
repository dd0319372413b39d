"""lm-eval's tasks on a local model: by the serving engine in this process, or by a running server through its API.

Metrics are kept for each document, so that two models are compared on the same documents.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from msgspec import structs

from tenfold.data.conversations.template import render
from tenfold.learn.answers import CACHE_GIB
from tenfold.learn.options import TaskOptions
from tenfold.learn.statistics import mcnemar, paired_test
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Output, Request, Sampling
from tenfold.serve.text import TextStream
from tenfold.spec.errors import TenfoldError

MAX_TOKENS = 256  # of an answer, where a task sets no limit
Values = dict[str, dict[str, float]]  # metric -> document -> value


class EngineLM(TemplateLM):
    """The serving engine as a model of lm-eval; texts become the same tokens as with lm-eval's own model `hf`.

    As there, a text that is too long loses its beginning. The engine holds the last token in its context, too, so it cuts one
    token earlier than `hf`.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.engine = make_engine(EngineOptions(path, kv_cache_gib=CACHE_GIB, speculate=False))
        self.tokens, self.vocabulary = read_tokenizer(path), read_vocabulary(path)

    @property
    def eot_token_id(self) -> int:
        return self.vocabulary.eos[0] if self.vocabulary.eos else self.vocabulary.document_end

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        return self.eot_token_id if self.vocabulary.bos is None else self.vocabulary.bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begins = self.vocabulary.name(self.vocabulary.bos)
        begun = begins is not None and string.startswith(begins)
        add = not begun if add_special_tokens is None else add_special_tokens
        return self.tokens.encode(string, add_special_tokens=add).ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Without `add_generation_prompt` the text ends with the last message, which the model continues."""
        template, last = self.vocabulary.chat_template, chat_history[-1]["content"]
        if template is None:
            raise TenfoldError(f"The model {self.path} has no chat template: leave --apply-chat-template out.")
        text = render(template, chat_history, self.vocabulary.names, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else text[: text.rindex(last) + len(last)]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        longest = self.engine.max_model_len
        for i, (_text, context, continuation) in enumerate(requests):
            self.engine.add(Request(str(i), (context + continuation)[-longest:], Sampling(logprobs=1), task="score"))
        found: dict[str, tuple[float, bool]] = {}
        while self.engine.has_work:
            for output in self._step():
                before = len(output.scores or ()) - len(requests[int(output.request_id)][2])
                assert output.scores is not None
                scored = output.scores[max(before, 0) :]
                nats = math.fsum(one.logprob for one in scored)
                found[output.request_id] = nats, all(one.logprob >= one.top[0][1] for one in scored)
        return [found[str(i)] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.engine.max_model_len - 1, 1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(math.fsum(value for value, _ in self._loglikelihood_tokens(parts)))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        streams: dict[str, TextStream] = {}
        for i, request in enumerate(requests):
            context, given = request.args
            wanted = dict(normalize_gen_kwargs(given, MAX_TOKENS))
            streams[str(i)] = TextStream(self.tokens, list(wanted["until"]))
            self.engine.add(Request(str(i), self._room(context, wanted["max_gen_toks"]), self._sampling(wanted)))
        texts = dict.fromkeys(streams, "")
        while self.engine.has_work:
            for output in self._step():
                name, stream = output.request_id, streams[output.request_id]
                if stream.stopped:
                    continue
                texts[name] += stream.push(output.tokens)[0]
                if stream.stopped:
                    self.engine.cancel(name)
                elif output.finish_reason:
                    texts[name] += stream.rest()
        return list(texts.values())

    def _room(self, context: str, answer: int) -> list[int]:
        """The last tokens of `context` that leave room for `answer` tokens. Raises TenfoldError where there is no room."""
        if (room := self.engine.max_model_len - answer) <= 0:
            raise TenfoldError(f"An answer of {answer} tokens does not fit the context of {self.engine.max_model_len}.")
        return self.tok_encode(context)[-room:]

    def _sampling(self, wanted: dict[str, Any]) -> Sampling:
        drawn = {name: wanted[name] for name in ("top_p", "top_k") if name in wanted} if wanted["do_sample"] else {}
        temperature = wanted.get("temperature", 1.0) if wanted["do_sample"] else 0.0
        stops = frozenset(self.vocabulary.eos)  # as with `hf`; a server has further stop tokens
        return Sampling(temperature=temperature, max_tokens=wanted["max_gen_toks"], stop_tokens=stops, seed=0, **drawn)

    def _step(self) -> list[Output]:
        outputs = self.engine.step()
        for output in outputs:
            if output.error:
                raise TenfoldError(f"{self.path} cannot be evaluated: {output.error}")
        return outputs


def harness(model: Path, asked: TaskOptions, against: Path | None = None) -> dict[str, dict[str, Any]]:
    """The number of documents and the metrics of each task; with `against` also the paired `differences` of each metric.

    The model `against` always answers in this process. Raises TenfoldError for a task that lm-eval does not know, or whose data
    it cannot read.
    """
    results, values = _evaluated(model, asked)
    beside = _evaluated(against, structs.replace(asked, api=""))[1] if against is not None else {}
    found: dict[str, dict[str, Any]] = {}
    for task, metrics in results.items():
        shown = {name: value for name, value in metrics.items() if isinstance(value, float | int)}
        found[task] = {"documents": max((len(of) for of in values[task].values()), default=0), "metrics": shown}
        if beside:
            found[task]["against"] = {
                metric: differences(beside[task][metric], new) for metric, new in values[task].items() if len(new) > 1
            }
    return found


def differences(old: dict[str, float], new: dict[str, float], level: float = 0.95) -> dict[str, Any]:
    """The mean of NEW - OLD over the same documents, with intervals at `level`; for values of 0 and 1 McNemar's `lost_p`, too."""
    pairs = [(old[document], value) for document, value in new.items()]
    found = asdict(paired_test([b - a for a, b in pairs], level))
    if all(value in (0, 1) for pair in pairs for value in pair):
        found["lost_p"] = mcnemar(*(list(map(bool, side)) for side in zip(*pairs, strict=True)))
    return found


def _evaluated(model: Path, asked: TaskOptions) -> tuple[dict[str, Any], dict[str, Values]]:
    """lm-eval's results by task, and the values of each metric by document."""
    names = [name for some in asked.tasks for name in some.split(",")]
    manager = _tasks(names, asked.include_path)
    lm: Any = "local-completions" if asked.api else EngineLM(model)
    try:
        said = lm_eval.simple_evaluate(
            lm, _api(asked.api, model) if asked.api else None, tasks=names, num_fewshot=asked.num_fewshot,
            limit=asked.limit or None, task_manager=manager, apply_chat_template=asked.apply_chat_template, bootstrap_iters=0,
        )  # fmt: skip
    except (OSError, ValueError, AssertionError) as error:  # for data that cannot be fetched, and for wrong task files
        raise TenfoldError(f"lm-eval refuses {', '.join(names)}: {' '.join(str(error).split())}") from error
    assert said is not None
    return said["results"], {task: _values(samples) for task, samples in said["samples"].items()}


def _tasks(names: list[str], folder: Path | None) -> TaskManager:
    """The tasks of `folder`, and lm-eval's own only where a name is not among them, because reading those takes seconds.

    Raises TenfoldError for a name that is in neither.
    """
    unknown = names
    for defaults in (False, True) if folder is not None else (True,):
        manager = TaskManager(include_path=str(folder) if folder is not None else None, include_defaults=defaults)
        if not (unknown := [name for name in names if not manager.match_tasks([name])]):
            return manager
    raise TenfoldError(f"lm-eval has no task {unknown[0]!r}: `lm-eval ls tasks` lists them, --include-path adds a folder.")


def _api(url: str, model: Path) -> dict[str, Any]:
    """Arguments of lm-eval for the first model of a server. Raises TenfoldError where there is no server."""
    try:
        with urlopen(f"{url}/v1/models", timeout=30) as answer:
            first = json.load(answer)["data"][0]["id"]
    except OSError as error:
        raise TenfoldError(f"{url} cannot be reached: {error}.") from None
    except (ValueError, LookupError, TypeError):
        raise TenfoldError(f"{url}/v1/models lists no model: give --api the address of a running server.") from None
    return {"base_url": f"{url}/v1/completions", "model": first, "tokenizer": str(model), "tokenizer_backend": "huggingface"}


def _values(samples: Sequence[dict[str, Any]]) -> Values:
    found: Values = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(value := sample[metric], float | int | np.number):
                found.setdefault(f"{metric},{sample['filter']}", {})[str(sample["doc_id"])] = float(value)
    return found
