"""Pictures in prompts: what a model answers is what its own whole forward pass over the pictures and the text says."""

import base64
import io
import json

import anthropic
import numpy as np
import pytest
import torch
from chat_models import answers, chat_model
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from tenfold.data.conversations.template import render
from tenfold.data.images.tiles import image_text, normalised, open_image, tiles_of
from tenfold.model.io.huggingface import read_model
from tenfold.serve.api.app import make_app
from tenfold.serve.api.budget import Place
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import Caller
from tenfold.serve.api.models import Models
from tenfold.serve.complete import complete
from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions, Limits, ServerOptions
from tenfold.serve.pictures import read_sight
from tenfold.serve.request import Picture, Request, Sampling
from tenfold.serve.text import read_text_side
from tenfold.spec.errors import TenfoldError

PLACES = 4  # tokens of a tile


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A model whose answers depend on pictures, cut in up to four tiles."""
    path = chat_model(tmp_path_factory.mktemp("pictures") / "seeing", sees=True, context=512)
    (path / "preprocessor_config.json").write_text(json.dumps({"max_patches": 4}))
    return path


@pytest.fixture(scope="module")
def model(seeing):
    return read_model(seeing).eval()


def options(path, **changes):
    return replace(EngineOptions(path, kv_cache_gib=0.02, speculate=False, threads=1), **changes)


def drawing(seed, width=16, height=16):
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def words(seed, length):
    """Tokens of ordinary text."""
    return torch.randint(0, 290, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def asked(name, prompt, **sampling):
    task = "generate" if sampling else "score"
    return Request(name, prompt.tokens, Sampling(temperature=0, logprobs=0, **sampling), task, pictures=prompt.pictures)


def pixels_of(prompt):
    tiles = [torch.from_numpy(normalised(picture.tiles)) for picture in prompt.pictures]
    return torch.cat(tiles) if tiles else None


@torch.no_grad()
def whole(model, tokens, pixels):
    """Logits [T, vocab] of the model's own pass, in which all patch tokens are those of pictures."""
    return model(torch.tensor([tokens]), pixels=pixels)[0]


def logprobs(logits, tokens):
    """Of each token after the first."""
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def greedy(model, tokens, pixels, count, stops=()):
    """The likeliest tokens that follow, up to one of `stops`."""
    grown = list(tokens)
    while len(grown) < len(tokens) + count:
        token = int(whole(model, grown, pixels)[-1].argmax())
        if token in stops:
            break
        grown.append(token)
    return grown[len(tokens) :]


def drawn(outputs):
    return [token for output in outputs for token in output.tokens]


SIZES = [[], [(16, 16)], [(32, 16), (16, 16)], [(40, 40), (16, 48), (9, 9)], [(100, 7)]]


@pytest.mark.parametrize("budget", [128, 7])  # whole pictures in a step, and pictures in pieces
def test_each_request_of_a_batch_sees_its_own_pictures(seeing, model, budget):
    sight, text = read_sight(seeing), read_text_side(seeing)
    engine, requests, prompts = make_engine(options(seeing, max_num_batched_tokens=budget)), [], {}
    for n, sizes in enumerate(SIZES):
        views = [sight.view(drawing(10 * n + i, *size), text) for i, size in enumerate(sizes)]
        prompts[str(n)] = sight.prompt([words(n + i, 9 + 7 * n) for i in range(len(views) + 1)], views)
        requests.append(asked(str(n), prompts[str(n)]))
    for name, outputs in answers(engine, requests).items():
        tokens = prompts[name].tokens
        expected = logprobs(whole(model, tokens, pixels_of(prompts[name])), tokens)
        got = torch.tensor([one.logprob for one in outputs[-1].scores])
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_equal_words_around_other_pictures_are_not_found_in_the_cache_but_the_words_before_are(seeing, model):
    sight, text, engine = read_sight(seeing), read_text_side(seeing), make_engine(options(seeing))
    texts, found = [words(1, 40), words(2, 30)], []
    for seed, cached in [(1, 0), (2, 32), (1, 64), (2, 64)]:  # of 40 tokens before, 2 blocks are full; of 77 in all 4
        prompt = sight.prompt(texts, [sight.view(drawing(seed), text)])
        outputs = answers(engine, [asked("r", prompt, max_tokens=6)])["r"]
        assert len(prompt.tokens) == 40 + PLACES + 3 + 30 and outputs[0].cached_tokens == cached
        grown = prompt.tokens + drawn(outputs)
        found.append([one.logprob for output in outputs for one in output.logprobs])
        assert found[-1] == pytest.approx(logprobs(whole(model, grown, pixels_of(prompt)), grown)[-6:].tolist(), abs=1e-4)
    assert found[0] == pytest.approx(found[2], abs=1e-4) and found[0] != pytest.approx(found[1], abs=0.01)


def test_who_loses_its_blocks_sees_its_pictures_again(seeing, model):
    sight, text = read_sight(seeing), read_text_side(seeing)
    engine = make_engine(options(seeing, kv_cache_gib=10 * 16 * 4 * 2 * 32 * 4 / 2**30))  # ten blocks
    prompts = {str(n): sight.prompt([words(n, 20), words(n + 9, 20)], [sight.view(drawing(n, 32, 16), text)]) for n in range(3)}
    found = answers(engine, [asked(name, prompt, max_tokens=40) for name, prompt in prompts.items()])
    assert engine.stats()["preemptions"] > 0
    for name, prompt in prompts.items():
        assert drawn(found[name]) == greedy(model, prompt.tokens, pixels_of(prompt), 40)


@torch.no_grad()
def test_a_text_that_has_the_words_of_a_picture_shows_none(seeing, model):
    """The same tokens with the picture in the first place or in the second: each shows it where it is, alone and behind the other."""
    sight, text, engine = read_sight(seeing), read_text_side(seeing), make_engine(options(seeing))
    view = sight.view(drawing(3), text)
    said = text.ids(image_text(1, 1, PLACES))
    assert said == view.tokens
    first = sight.prompt([words(1, 3), [*said, *words(2, 20)]], [view])
    second = sight.prompt([[*words(1, 3), *said], words(2, 20)], [view])
    assert first.tokens == second.tokens and first.pictures[0].patches != second.pictures[0].patches
    for prompt in (first, second):
        tokens = torch.tensor([prompt.tokens])
        x = model.embed(tokens)
        x[0, prompt.pictures[0].patches] = model.vision(torch.from_numpy(normalised(view.tiles)))[0]
        expected = logprobs(model.head(model.norm(model.through(x)))[0], prompt.tokens)
        for _ in range(2):
            outputs = answers(engine, [asked("r", prompt, max_tokens=1), asked("s", prompt)])
            got = torch.tensor([one.logprob for one in outputs["s"][-1].scores])
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


salts = st.lists(st.tuples(st.integers(0, 15), st.sampled_from([b"a" * 16, b"b" * 16])), max_size=3, unique_by=lambda s: s[0])
contents = st.tuples(st.lists(st.integers(0, 1), min_size=16, max_size=16), salts.map(sorted))


@given(contents, contents)
def test_hashes_are_equal_as_far_as_tokens_and_what_counts_beside_them_are(one, other):
    size, found = 4, []
    for tokens, beside in (one, other):
        found.append([])
        BlockManager(1, size).extend_hashes(found[-1], tokens, None, beside)
    for end in range(size, 17, size):
        same = all(
            a[0][:end] == b[0][:end] and [s for s in a[1] if s[0] < end] == [s for s in b[1] if s[0] < end]
            for a, b in [(one, other)]
        )
        assert (found[0][end // size - 1] == found[1][end // size - 1]) == same


def data_url(image, form="PNG", **how):
    stream = io.BytesIO()
    image.save(stream, form, **how)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def in_chat(parts):
    """A chat's message; a part is text or the URL of a picture."""
    made = [
        {"type": "image_url", "image_url": {"url": p}} if p.startswith(("data:", "http")) else {"type": "text", "text": p}
        for p in parts
    ]
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": made}], "max_tokens": 8, "temperature": 0}


def in_responses(parts):
    made = [
        {"type": "input_image", "image_url": p} if p.startswith(("data:", "http")) else {"type": "input_text", "text": p}
        for p in parts
    ]
    return "/v1/responses", {"input": [{"role": "user", "content": made}], "max_output_tokens": 8, "temperature": 0}


def in_messages(parts):
    def block(part):
        if part.startswith("http"):
            return {"type": "image", "source": {"type": "url", "url": part}}
        if not part.startswith("data:"):
            return {"type": "text", "text": part}
        head, _, data = part.partition(",")
        return {"type": "image", "source": {"type": "base64", "media_type": head[5:].partition(";")[0], "data": data}}

    return "/v1/messages", {"messages": [{"role": "user", "content": list(map(block, parts))}], "max_tokens": 8, "temperature": 0}


ROUTES = {"chat": in_chat, "responses": in_responses, "messages": in_messages}


def said(answer):
    """The text of an answer of any of the three, and how many tokens it read."""
    body = answer.json()
    assert answer.status_code == 200, body
    if "choices" in body:
        return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]
    if "output" in body:
        return body["output"][0]["content"][0]["text"], body["usage"]["input_tokens"]
    used = body["usage"]
    return "".join(b["text"] for b in body["content"]), used["input_tokens"] + used["cache_read_input_tokens"]


@pytest.fixture(scope="module")
def client(seeing, tmp_path_factory):
    blind = chat_model(tmp_path_factory.mktemp("blind") / "blind")
    limits = Limits(max_images=3, max_image_pixels=2500, max_image_bytes=16_000, max_loaded=2)
    server = ServerOptions(limits=limits, feedback=str(tmp_path_factory.mktemp("feedback") / "feedback.db"))
    app = make_app(Models({"seeing": options(seeing), "blind": options(blind)}, limits), server)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


CHAT = [
    ["What is it?", drawing(1)],
    [drawing(1), drawing(2, 40, 30), "Which is larger?"],
    ["Hello there", drawing(2), "and", drawing(1)],
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("parts", CHAT, ids=len)
def test_an_answer_is_that_of_the_models_own_pass(client, seeing, model, route, parts):
    text, vision = read_text_side(seeing), model.spec.vision
    content, pixels = "", []
    for part in parts:
        if not isinstance(part, str):
            tiles, rows, columns = tiles_of(part, vision.image_size, 4)
            pixels.append(torch.from_numpy(tiles))
            part = image_text(rows, columns, PLACES)
        content += part
    told = render(text.template, [{"role": "user", "content": content}], text.special, add_generation_prompt=True)
    tokens = text.ids(told)  # whose pictures' words are special tokens, as nobody could write them
    path, body = ROUTES[route]([part if isinstance(part, str) else data_url(part) for part in parts])
    expected = text.tokenizer.decode(greedy(model, tokens, torch.cat(pixels), 8, text.stop_tokens))
    assert said(client.post(path, json=body)) == (expected, len(tokens))


def test_one_tile_is_shown_where_less_detail_is_asked_for(client):
    url, counts = data_url(drawing(1, 40, 40)), []
    for detail in ("low", "high"):
        path, body = in_chat([url])
        body["messages"][0]["content"][0]["image_url"]["detail"] = detail
        counts.append(said(client.post(path, json=body))[1])
        path, body = in_responses([url])
        body["input"][0]["content"][0]["detail"] = detail
        assert said(client.post(path, json=body))[1] == counts[-1]
    assert counts[1] - counts[0] == 4 * (PLACES + 1)  # four tiles, each with a separator


def test_jpeg_webp_and_gif_are_read_as_pillow_reads_them(client):
    for form in ("JPEG", "WEBP", "GIF"):
        url = data_url(drawing(5), form)
        again = data_url(open_image(base64.b64decode(url.partition(",")[2])))
        assert said(client.post(in_chat([url])[0], json=in_chat([url])[1])) == said(
            client.post(in_chat([again])[0], json=in_chat([again])[1])
        )


def test_later_turns_and_stored_objects_have_the_picture(client):
    path, body = in_responses([data_url(drawing(7)), "Hello"])
    first, then = client.post(path, json=body).json(), {"role": "user", "content": "And then?"}
    told = [*body["input"], {"role": "assistant", "content": first["output"][0]["content"][0]["text"]}, then]
    following, whole_again = (
        said(client.post(path, json={"max_output_tokens": 4, "temperature": 0, **more}))
        for more in ({"input": [then], "previous_response_id": first["id"]}, {"input": told})
    )
    assert following == whole_again
    made = client.post("/v1/conversations", json={"items": body["input"]}).json()["id"]
    items = client.get(f"/v1/conversations/{made}/items").json()["data"]
    assert items[0]["content"] == body["input"][0]["content"]
    told = client.post(path, json={"input": "And then?", "conversation": made, "max_output_tokens": 4})
    assert said(told)[1] > PLACES + 3


def test_results_of_tools_may_be_pictures(client):
    url = data_url(drawing(8))
    call = {"type": "function", "id": "a", "function": {"name": "look", "arguments": "{}"}}
    chat = [{"role": "user", "content": "Look"}, {"role": "assistant", "tool_calls": [call]}]
    chat.append({"role": "tool", "tool_call_id": "a", "content": in_chat([url])[1]["messages"][0]["content"]})
    items = [{"role": "user", "content": "Look"}, {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}]
    items.append({"type": "function_call_output", "call_id": "a", "output": in_responses([url])[1]["input"][0]["content"]})
    turns = [{"role": "user", "content": "Look"}]
    turns.append({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {}}]})
    given = {"type": "tool_result", "tool_use_id": "a", "content": in_messages([url])[1]["messages"][0]["content"]}
    turns.append({"role": "user", "content": [given]})
    found = [
        said(client.post("/v1/chat/completions", json={"messages": chat, "max_tokens": 4, "temperature": 0})),
        said(client.post("/v1/responses", json={"input": items, "max_output_tokens": 4, "temperature": 0})),
        said(client.post("/v1/messages", json={"messages": turns, "max_tokens": 4, "temperature": 0})),
    ]
    assert len(set(found)) == 1


def test_anthropics_client_streams_about_a_picture(client):
    asking = anthropic.Anthropic(base_url="http://127.0.0.1:8000", api_key="x", http_client=client)
    body = in_messages([data_url(drawing(1)), "Hello"])[1]
    with asking.messages.stream(
        model="seeing", messages=body["messages"], max_tokens=body["max_tokens"], extra_body={"temperature": 0}
    ) as stream:
        streamed = "".join(stream.text_stream)
    assert streamed == said(client.post("/v1/messages", json=body))[0]


def huge(width, height):
    return data_url(Image.new("1", (width, height)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
REFUSED = {
    "an address": (["http://127.0.0.1:1/a.png"], "not fetched from addresses"),
    "no base64": (["data:image/png;base64,????"], "Picture 1 is not valid base64"),
    "no picture": ([f"data:image/png;base64,{base64.b64encode(b'hello').decode()}"], "Picture 1 is no image that can be read"),
    "a program": ([f"data:image/eps;base64,{base64.b64encode(EPS).decode()}"], "is no image that can be read"),
    "cut short": ([data_url(drawing(1, 40, 40))[:-100]], "Picture 1 is damaged or cut short"),
    "too many pixels": ([huge(51, 50)], "Picture 1 has 2550 pixels, more than 2500"),
    "far too many": ([huge(9000, 9000)], "9000 x 9000"),
    "one too many": ([data_url(drawing(1))] * 4, "at most 3 pictures"),
    "too large together": ([data_url(drawing(n, 32, 32)) for n in range(3)], "at most 8000 bytes"),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_that_can_be_shown_is_a_sentence(client, route, case):
    parts, told = REFUSED[case]
    path, body = ROUTES[route](parts)
    answer = client.post(path, json=body)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and told in message and message.endswith(".")


def test_a_model_without_an_encoder_refuses(client):
    for route in ROUTES.values():
        path, body = route(["Hello", data_url(drawing(1))])
        answer = client.post(path, json={"model": "blind", **body})
        assert answer.status_code == 400 and "blind reads text alone" in answer.json()["error"]["message"]


def test_pictures_of_requests_under_way_are_bounded_together(seeing):
    models = Models({"seeing": options(seeing)}, Limits(max_image_bytes=2000, key_share=0.5))
    picture = Picture(np.zeros((1, 3, 16, 16), np.uint8), [0, 1, 2, 3])
    one, other, third = (Place(Caller(name, False)) for name in ("a", "a", "b"))
    models.hold_pictures((picture,), one)
    with pytest.raises(ApiError) as refused:
        models.hold_pictures((picture,), other)
    assert refused.value.status == 429
    models.hold_pictures((picture,), third)
    one.holds.close()
    models.hold_pictures((picture,), other)


def test_answers_about_pictures_are_not_kept_as_feedback(client):
    path, body = in_chat([data_url(drawing(1))])
    answer = client.post(path, json={"store": True, **body})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "store"


def test_words_of_a_picture_in_a_text_are_words(client):
    words = image_text(1, 2, PLACES)
    for parts in ([words], [data_url(drawing(1)), words, data_url(drawing(2))]):
        path, body = in_chat(parts)
        read = said(client.post(path, json=body))[1]
        path, body = in_chat([part.replace(words, "Hello") for part in parts])
        assert read > said(client.post(path, json=body))[1]


def test_one_text_about_an_image_is_what_the_model_itself_writes(seeing, model, tmp_path):
    drawing(4, 20, 20).save(tmp_path / "a.png")
    text = read_text_side(seeing)
    tiles, rows, columns = tiles_of(drawing(4, 20, 20), 16, 4)
    tokens = text.tokenizer.encode(image_text(rows, columns, PLACES) + "Hello").ids
    following = greedy(model, tokens, torch.from_numpy(tiles), 6, text.stop_tokens)
    written = complete(seeing, "Hello", max_new_tokens=6, temperature=0, top_p=1, seed=0, image=tmp_path / "a.png")
    assert written.text == text.tokenizer.decode(tokens + following)


def test_a_template_that_leaves_a_picture_out_is_a_sentence(tmp_path):
    path = chat_model(tmp_path / "deaf", template="{% for m in messages %}{{ m['role'] }}{% endfor %}", sees=True)
    app = make_app(Models({"deaf": options(path)}, Limits()), ServerOptions())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        answer = client.post(in_chat([data_url(drawing(1))])[0], json=in_chat([data_url(drawing(1))])[1])
    assert answer.status_code == 400 and "does not write each picture" in answer.json()["error"]["message"]


@pytest.mark.parametrize("said", ["[1]", "{", '{"max_patches": 0}', '{"max_patches": "4"}'])
def test_a_damaged_preprocessor_is_a_sentence(tmp_path, seeing, said):
    (tmp_path / "config.json").write_bytes((seeing / "config.json").read_bytes())
    assert read_sight(tmp_path).max_tiles == 1
    (tmp_path / "preprocessor_config.json").write_text(said)
    with pytest.raises(TenfoldError, match=r"preprocessor_config\.json"):
        read_sight(tmp_path)
