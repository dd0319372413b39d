"""Where generation ends: the tokens of the model's files, and the one that its chat template writes after an answer."""

import json

import pytest
from chat_models import chat_model
from tokenizers import AddedToken

from tenfold.data.conversations.template import render
from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.model.io.tokenizer import copy_tokenizer, read_vocabulary, save_tokenizer
from tenfold.spec.template_ends import ends_of_answers
from tenfold.spec.vocabulary import Vocabulary

# The parts of published templates that write messages.
TEMPLATES = {
    "Llama 3.1": (
        "{{- bos_token }}{%- for message in messages %}{%- if not (message.role == 'ipython' or 'tool_calls' in message) %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{%- elif 'tool_calls' in message %}{{- '<|python_tag|>' + message.tool_calls }}{{- '<|eom_id|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
        "<|eot_id|>",
    ),
    "Phi 3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
    ),
    "Gemma": (
        "{{ bos_token }}{% for message in messages %}{% set role = message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        "<end_of_turn>",
    ),
    "DeepSeek": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{'<|User|>' + m['content']}}{% else %}{{'<|Assistant|>'}}"
        "{{m['content']}}{% if m['tool_calls'] %}{{'<|tool_calls_begin|>'}}{{m['tool_calls']}}{% endif %}{{'<|end_of_turn|>'}}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{'<|Assistant|>'}}{% endif %}",
        "<|end_of_turn|>",
    ),
    "Mistral": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        None,  # the tokenizer's own
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_s_end_of_turn_is_what_it_writes_after_an_answer(name):
    template, end = TEMPLATES[name]
    assert [found for found in ends_of_answers(template) if found != "{{ }}"] == ([end] if end else [])
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
    after = render(template, messages, {"bos_token": "<s>", "eos_token": "</s>"}).split("ANSWER")[1]
    assert after.startswith(end or "</s>")


@pytest.mark.parametrize("template", ["{% for m in %}", "{{ content", "{% for i in range(10**9) %}{{ content }}{% endfor %}", ""])
def test_a_stranger_s_template_is_not_run(template):
    assert ends_of_answers(template) == []


def stored(directory, **config):
    """A tokenizer with two tokens that end a turn, and files that say what `config` has."""
    names = ("<|end|>", "<|call|>")
    tokenizer = train_tokenizer(["some text"], 270)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    directory.mkdir()
    save_tokenizer(tokenizer, Vocabulary(size=tokenizer.get_vocab_size()), directory)
    (directory / "generation_config.json").unlink()
    for file, fields in config.items():
        (directory / f"{file}.json").write_text(json.dumps(fields))
    return directory, {name: tokenizer.token_to_id(name) for name in (*names, "<|end_of_text|>")}


def test_one_end_or_a_list_from_any_of_the_files(tmp_path):
    _, ids = stored(tmp_path / "ids")
    one, two = ids["<|end|>"], ids["<|call|>"]
    for i, (files, ends) in enumerate((
        ({"config": {"eos_token_id": one}}, {one}),
        ({"config": {"eos_token_id": [one, two]}}, {one, two}),
        ({"config": {"eos_token_id": one}, "generation_config": {"eos_token_id": [two, one]}}, {one, two}),
        ({"tokenizer_config": {"eos_token": {"content": "<|call|>"}}}, {two}),
        ({"tokenizer_config": {"eos_token": "<|call|>", "chat_template": TEMPLATES["Phi 3"][0]}}, {two, one}),
    )):  # fmt: skip
        directory, _ = stored(tmp_path / str(i), **files)
        assert read_vocabulary(directory).stop_tokens == ends | {ids["<|end_of_text|>"]}  # which also ends a document


def test_a_copy_tells_every_tool_the_template_s_end(tmp_path):
    """`transformers` ends at the ids of `generation_config.json`; the template's end is among them, and travels on."""
    source = chat_model(tmp_path / "model")
    template = TEMPLATES["Gemma"][0].replace("<end_of_turn>", "<|im_start|>")
    (source / "chat_template.jinja").write_text(template)
    (tmp_path / "copy").mkdir()
    copy_tokenizer(source, tmp_path / "copy")
    said = json.loads((tmp_path / "copy" / "generation_config.json").read_text())["eos_token_id"]
    assert said == list(read_vocabulary(source).eos) and len(said) == 2
    assert read_vocabulary(tmp_path / "copy") == read_vocabulary(source)


def test_a_template_of_many_branches_is_read_at_once():
    """Each branch is looked at once: ways through them would be 2 to the power of 200."""
    branches = "{% if a %}{% set b = 1 %}{% else %}{% set b = 2 %}{% endif %}" * 200
    template = "{% for message in messages %}{{ message.content }}" + branches + "{{ '<|end|>' }}{% endfor %}"
    assert ends_of_answers(template) == ["<|end|>"]
