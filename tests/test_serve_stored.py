"""Responses in the background and conversations by name, by OpenAI's own client: each answers to its owner alone."""

import threading
import time

import openai
import pytest
from scripted import Scripted, scripted_site

from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.serve.api.keys import make_key
from tenfold.serve.options import Limits

ASK = {"model": "tiny", "input": "hello"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {name: make_key(keys, name) for name in ("ann", "ben")}
    backend = Scripted(train_tokenizer(["hello there, how are you today? " * 20], 300))
    with scripted_site(backend, keys=keys, limits=Limits(max_queue=2)) as url:
        yield (
            backend,
            {
                name: openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, _strict_response_validation=True)
                for name, key in made.items()
            },
        )


@pytest.fixture
def backend(site):
    yield site[0]
    site[0].goes_on.set()


@pytest.fixture
def ann(site):
    return site[1]["ann"]


@pytest.fixture
def ben(site):
    return site[1]["ben"]


def ended(client, name):
    """A response once it is not under way any longer."""
    for _ in range(1200):
        response = client.responses.retrieve(name)
        if response.status != "in_progress":
            return response
        time.sleep(0.1)
    raise AssertionError("the response is still under way")


def test_a_response_in_the_background_is_found_when_it_is_made(backend, ann, ben):
    backend.says = "how are you"
    backend.goes_on.clear()
    begun = ann.responses.create(**ASK, background=True, metadata={"a": "b"})
    assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
    with pytest.raises(openai.NotFoundError):
        ben.responses.retrieve(begun.id)
    with pytest.raises(openai.RateLimitError):  # it holds its place in the queue, of which half is ann's
        ann.responses.create(**ASK)
    with pytest.raises(openai.BadRequestError):
        ann.responses.create(**ASK, previous_response_id=begun.id)
    backend.goes_on.set()
    made = ended(ann, begun.id)
    assert (made.status, made.output_text, made.metadata) == ("completed", "how are you", {"a": "b"})
    again = ann.responses.create(**ASK, previous_response_id=begun.id)
    assert again.output_text == "how are you" and "how are you" in backend.asked[-1]
    assert ann.responses.cancel(begun.id).status == "completed"


def test_a_response_in_the_background_is_cancelled_by_its_owner(backend, ann, ben):
    backend.says = "how are you"
    backend.goes_on.clear()
    name = ann.responses.create(**ASK, background=True).id
    with pytest.raises(openai.NotFoundError):
        ben.responses.cancel(name)
    assert ann.responses.retrieve(name).status == "in_progress"
    assert ann.responses.cancel(name).status == "cancelled" == ann.responses.retrieve(name).status
    deleted = ann.responses.create(**ASK, background=True).id  # there is a place in the queue again
    ann.responses.delete(deleted)
    backend.goes_on.set()
    assert ann.responses.create(**ASK).output_text == "how are you"
    with pytest.raises(openai.NotFoundError):
        ann.responses.retrieve(deleted)


def test_a_failure_in_the_background_is_told(backend, ann):
    backend.says = None  # what no tokenizer takes
    failed = ended(ann, ann.responses.create(**ASK, background=True).id)
    with ann.responses.create(**ASK, background=True, stream=True) as stream:
        last = list(stream)[-1]
    backend.says = "hello"
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert failed.status == "failed" and failed.error.message.endswith(".")


def test_a_stream_of_the_background_goes_on_without_its_reader_and_is_read_from_anywhere(backend, ann, ben):
    backend.says = "how are you today? how are you today?"
    backend.goes_on.clear()
    with ann.responses.create(**ASK, background=True, stream=True) as stream:
        read = [next(stream) for _ in range(4)]  # up to the first word
    name = read[0].response.id
    with pytest.raises(openai.NotFoundError):
        ben.responses.retrieve(name, stream=True)
    threading.Timer(0.2, backend.goes_on.set).start()  # the answer to the next request begins with its first event
    read += ann.responses.retrieve(name, stream=True, starting_after=3)
    assert [event.sequence_number for event in read] == list(range(len(read)))
    assert read[-1].type == "response.completed" and read[-1].response.output_text == backend.says
    assert "".join(event.delta for event in read if event.type == "response.output_text.delta") == backend.says
    for after in (0, 3, len(read) - 2):
        assert list(ann.responses.retrieve(name, stream=True, starting_after=after)) == read[after + 1 :]
    assert list(ann.responses.retrieve(name, stream=True)) == read
    with pytest.raises(openai.BadRequestError, match="none behind"):
        ann.responses.retrieve(name, stream=True, starting_after=len(read) - 1)
    ann.responses.delete(name)
    with pytest.raises(openai.NotFoundError):
        ann.responses.retrieve(name, stream=True)


def test_the_stream_of_a_response_that_is_cancelled_says_so(backend, ann):
    backend.says, events = "how are you", []
    backend.goes_on.clear()
    with ann.responses.create(**ASK, background=True, stream=True) as stream:
        events.append(next(stream))
        ann.responses.cancel(events[0].response.id)
        events += list(stream)
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "cancelled")


def test_a_stream_is_of_a_response_that_was_begun_as_one(backend, ann):
    with pytest.raises(openai.NotFoundError):
        ann.responses.retrieve(ended(ann, ann.responses.create(**ASK, background=True).id).id, stream=True)


@pytest.mark.parametrize("text", [{}, {"format": {}}, {"verbosity": "low"}])
def test_a_response_says_which_format_its_text_has(ann, text):
    assert ann.responses.create(**ASK, text=text).text.format.type == "text"


def test_a_compacted_conversation_is_what_its_user_said_and_a_summary_and_goes_on(backend, ann):
    backend.says = "how are you"
    first = ann.responses.create(**ASK)
    backend.says = "hello was said"
    asked = {"model": "tiny", "previous_response_id": first.id, "input": "there"}
    answer = ann.with_options(max_retries=0).responses.with_raw_response.compact(**asked).http_response.json()
    assert answer["object"] == "response.compaction" and answer["usage"]["output_tokens"] > 0
    assert all(said in backend.asked[-1] for said in ("hello", "how are you", "there"))
    *said, summary = answer["output"]
    assert [item["content"][0]["text"] for item in said] == ["hello", "there"] and summary["type"] == "compaction"
    ann.responses.create(model="tiny", input=[*answer["output"], {"role": "user", "content": "today?"}])
    prompt = backend.asked[-1]
    assert prompt.index("there") < prompt.index("hello was said") < prompt.index("today?") and "how are you" not in prompt
    with pytest.raises(openai.BadRequestError, match="compaction"):
        ann.responses.create(model="tiny", input=[{**summary, "encrypted_content": "?"}])


def test_what_cannot_be_in_the_background_is_refused(ann):
    with pytest.raises(openai.BadRequestError):
        ann.responses.create(**ASK, background=True, store=False)
    with pytest.raises(openai.BadRequestError):
        ann.responses.cancel(ann.responses.create(**ASK).id)


def test_a_conversation_grows_by_items_and_by_responses(backend, ann, ben):
    backend.says = "I am well"
    items = [{"type": "message", "role": "user", "content": "hello there"}, {"role": "assistant", "content": "how are you"}]
    conversation = ann.conversations.create(items=items, metadata={"a": "b"})
    assert ann.conversations.retrieve(conversation.id).metadata == {"a": "b"}
    response = ann.responses.create(model="tiny", input="today?", conversation=conversation.id)
    assert response.conversation.id == conversation.id
    prompt = backend.asked[-1]
    assert prompt.index("hello there") < prompt.index("how are you") < prompt.index("today?")
    kept = list(ann.conversations.items.list(conversation.id, order="asc", limit=3))  # over two pages
    assert [item.content[0].text for item in kept] == ["hello there", "how are you", "today?", "I am well"]
    assert [item.role for item in kept] == ["user", "assistant"] * 2
    assert list(ann.conversations.items.list(conversation.id)) == kept[::-1]
    (added,) = ann.conversations.items.create(conversation.id, items=[{"role": "user", "content": "bye"}]).data
    assert ann.conversations.items.retrieve(added.id, conversation_id=conversation.id) == added
    ann.conversations.items.delete(added.id, conversation_id=conversation.id)
    assert len(list(ann.conversations.items.list(conversation.id))) == 4
    assert ann.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    others = ben.conversations
    for reach in (
        lambda: others.retrieve(conversation.id),
        lambda: others.update(conversation.id, metadata={}),
        lambda: others.delete(conversation.id),
        lambda: others.items.list(conversation.id),
        lambda: others.items.create(conversation.id, items=items),
        lambda: others.items.retrieve(kept[0].id, conversation_id=conversation.id),
        lambda: others.items.delete(kept[0].id, conversation_id=conversation.id),
        lambda: ben.responses.create(**ASK, conversation=conversation.id),
        lambda: ann.responses.retrieve(conversation.id),
        lambda: ann.conversations.items.retrieve("msg-other", conversation_id=conversation.id),
    ):
        with pytest.raises(openai.NotFoundError):
            reach()
    assert ann.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        ann.responses.create(**ASK, conversation=conversation.id)


@pytest.mark.parametrize(
    "item", [{"type": "reasoning", "summary": []}, {"role": "nobody", "content": "a"}, {"role": "user", "content": 5}]
)
def test_items_that_no_model_could_read_are_refused(ann, item):
    with pytest.raises(openai.BadRequestError):
        ann.conversations.create(items=[item])
