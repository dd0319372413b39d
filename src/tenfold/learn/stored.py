"""Answers that a server stored with the log-probability of each token when it was drawn, and their rewards. A row is

{"prompt": [messages], "token_ids": [...], "logprobs": [...], "reward": 1.0}

`logprobs` are those of the sampling distribution, after temperature and filters; a stop token is one of the tokens. In a feedback
database every judged answer is a row: a thumb up or a won comparison has the reward 1, a thumb down or a lost one -1, and several
judgements have their mean. Reward functions, where given, replace the judgements, and score answers without any, too.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tenfold.data.conversations.chats import Chat, messages_of
from tenfold.data.conversations.rows import Row, read_rows
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.data import content_of, is_file_of_rows, open_feedback, read_people, write_versioned
from tenfold.learn.lineage import holders
from tenfold.learn.personal import found as personal_data
from tenfold.learn.rewards import Rewards
from tenfold.spec.errors import TenfoldError, without_secrets
from tenfold.spec.files import atomic_folder, write_text

if TYPE_CHECKING:
    from tenfold.serve.feedback.feedback import Feedback

FORM = '{"prompt": "...", "token_ids": [...], "logprobs": [...], "reward": 1.0}'
WORTH = {1: 1.0, -1: -1.0}


class StoredAnswer(NamedTuple):
    """An answer: its tokens with the stop token that ended it, the log-probability with which each was drawn, and the reward."""

    prompt: Chat
    tokens: list[int]
    log_probs: list[float]
    reward: float


def keep_stored(source: str, encoder: ChatEncoder, folder: Path, rewards: Rewards | None) -> Path:
    """Write the stored answers of `source` to `stored.jsonl` in `folder`, once, so that a continued run has the same ones.

    Returns the file. `people.json` beside it lists their users, and counts the answers left out, with reasons. Raises TenfoldError
    where none is left, or `folder` was made of other rows or rewards.
    """
    file = folder / "stored.jsonl"
    made_of = {**content_of(source), "kind": "stored", "rewards": rewards.fingerprint if rewards else ""}
    if folder.exists():
        if read_people(folder).get("made_of") != made_of:
            raise TenfoldError(f"{folder} was made of other rows or rewards than {source}: give the new generation another --name.")
        return file
    left_out, users = Counter[str](), set[str]()
    rows: list[Row] = []
    feedback, by_functions = None if is_file_of_rows(source) else open_feedback(source), rewards is not None
    found = _of_feedback(feedback, by_functions, left_out) if feedback is not None else _of_file(Path(source), by_functions)
    for user, row in found:
        text = encoder.tokenizer.decode(row["token_ids"])
        if any(personal_data(said) for said in (text, *(message["content"] for message in row["prompt"]))):
            left_out["personal data"] += 1
            continue
        rows.append({**row, "text": text})
        users.add(user)
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it has no answers"
        raise TenfoldError(
            f"{source} has no stored answers to learn from ({why}): let people judge answers to requests with store: true."
        )
    if rewards is not None:
        for row, worth in zip(rows, rewards(rows, [row["text"] for row in rows]), strict=True):
            row["reward"] = worth
    said: dict[str, Any] = {"made_of": made_of, "rows": {file.stem: len(rows)}, "left_out": dict(left_out)}
    if feedback is not None:
        gone = holders(folder.parent.parent, without_secrets(source), feedback.users())
        said |= {"users": {file.stem: sorted(users)}, "deleted_users_still_in": gone}
    with atomic_folder(folder) as scratch:
        write_versioned(scratch / "people.json", said)
        write_text(scratch / file.name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def _of_file(path: Path, by_functions: bool) -> Iterator[tuple[str, Row]]:
    """Each row of a file, with an empty user; with `by_functions` rows need no `reward`, since functions give it."""
    for where, row in read_rows(path):
        answer = _answer({**row, "reward": 0.0} if by_functions else row, where)
        yield "", {**row, "prompt": answer.prompt}


def _of_feedback(feedback: "Feedback", by_functions: bool, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    """Each answer of a database that can be learned from, after the user who asked for it; `left_out` counts the others."""
    from tenfold.serve.feedback.feedback import pairs, ratings, responses

    worth: dict[str, dict[str, float]] = {}  # answer -> user -> reward; a user's comparison replaces their thumb
    for rating in feedback.rows(ratings):
        worth.setdefault(rating.response_id, {})[rating.user_hash] = WORTH.get(rating.value, 0.0)
    for pair in feedback.rows(pairs):
        for name, mine in (("a", pair.a_response_id), ("b", pair.b_response_id)):
            won = {"tie": 0.0, "both_bad": -1.0}.get(pair.winner, 1.0 if pair.winner == name else -1.0)
            worth.setdefault(mine, {})[pair.user_hash] = won
    for answer in feedback.rows(responses):
        given = worth.get(answer.id, {})
        if reason := _unfit(answer, bool(given) or by_functions):
            left_out[reason] += 1
            continue
        reward = math.fsum(given.values()) / max(1, len(given))
        row = {"prompt": answer.messages, "token_ids": answer.token_ids, "logprobs": answer.logprobs, "reward": reward}
        yield answer.user_hash, row


def _unfit(answer: Any, is_judged: bool) -> str:
    """Why an answer of a feedback database cannot be learned from; empty where it can."""
    if not answer.logprobs or len(answer.logprobs) != len(answer.token_ids):
        return "without log-probabilities"
    if answer.sampling.get("temperature", 1.0) < 1e-5:
        return "drawn without chance (temperature 0)"
    if answer.finish_reason not in ("stop", "length"):
        return "not finished"
    return "" if is_judged else "not judged"


def read_stored(path: Path) -> list[StoredAnswer]:
    """The answers of a file. Raises TenfoldError, with the line, for a row that is no stored answer."""
    found = [_answer(row, where) for where, row in read_rows(path)]
    if not found:
        raise TenfoldError(f"{path} holds no stored answers: write rows {FORM}.")
    return found


def _answer(row: Row, where: str) -> StoredAnswer:
    tokens: Any = row.get("token_ids")
    log_probs: Any = row.get("logprobs")
    reward: Any = row.get("reward")
    if row.get("prompt") is None or not _numbers(tokens, int) or min(tokens) < 0 or not _numbers(log_probs, (int, float)):
        raise TenfoldError(f"{where}: write {FORM}.")
    if len(tokens) != len(log_probs):
        raise TenfoldError(f"{where}: {len(tokens)} tokens have {len(log_probs)} log-probabilities: give one of each.")
    if not all(-math.inf < value <= 1e-6 for value in log_probs):
        raise TenfoldError(f"{where}: a log-probability must be a number of at most 0.")
    if not _numbers([reward], (int, float)) or not math.isfinite(reward):
        raise TenfoldError(f"{where}: the reward must be a finite number, not {reward!r}.")
    return StoredAnswer(messages_of(row["prompt"], where), tokens, log_probs, float(reward))


def _numbers(values: Any, kind: Any) -> bool:
    """Whether `values` is a list of at least one number."""
    return isinstance(values, list) and bool(values) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def advantages(prompts: Sequence[tuple[int, ...]], rewards: Sequence[float], scaled: bool) -> list[float]:
    """The reward of each answer minus the mean over all answers to its prompt, or, where it is the only one, over all answers.

    `scaled` divides by the standard deviation of the same rewards, as GRPO does.
    """
    groups: dict[tuple[int, ...], list[float]] = {}
    for prompt, reward in zip(prompts, rewards, strict=True):
        groups.setdefault(prompt, []).append(reward)
    of_all = _mean_and_deviation(rewards)
    known = {prompt: _mean_and_deviation(group) if len(group) > 1 else of_all for prompt, group in groups.items()}
    found = []
    for prompt, reward in zip(prompts, rewards, strict=True):
        mean, deviation = known[prompt]
        found.append((reward - mean) / (deviation + 1e-4) if scaled else reward - mean)
    return found


def _mean_and_deviation(rewards: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(rewards) / max(1, len(rewards))
    return mean, math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / max(1, len(rewards) - 1))
