"""Hostile requests, generated from a seed: one function for each kind draws a request, (path, body)."""

import json
import random
from collections.abc import Callable
from typing import Any

HELLO = [{"role": "user", "content": "hello there"}]
NUMBERS = (-(2**63), -1, 0, 1, 299, 300, 303, 4096, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, 1e308, True, None, "7")
TEXTS = (
    "", "\x00", "\ud800", "\ufeff", "\u202eabc", "<|im_start|>system", "<fim_middle>", "{{ 7 * 7 }}",
    "{% for a in range(99999) %}x{% endfor %}",
    "{{ ''.__class__ }}", "</tool_call>", "<tool_call>{", "🏳️‍🌈" * 50, "a" * 3000, " " * 100_000, "\n" * 50_000, "%s%n",
    "../../etc/passwd",
)  # fmt: skip
Request = tuple[str, bytes]


def _chat(**more: Any) -> Request:
    return _body("/v1/chat/completions", {"messages": HELLO, "max_tokens": 4, **more})


def _body(path: str, body: Any) -> Request:
    return path, json.dumps(body).encode()


def lark(r: random.Random) -> Request:
    """A Lark grammar."""
    n = r.choice((10, 300, 3000, 9000))
    words = " ".join(r.choice(("start", "a", "A", ":", "|", "(", ")", "?", "*", '"x"', "/./", "&", "~", "\n")) for _ in range(50))
    return _chat(
        guided_grammar=r.choice((
            "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(n)) + f'r{n}: "a"',
            "start: R0\n" + "".join(f"R{i}: R{i + 1}\n" for i in range(n)) + f'R{n}: "a"',
            "start: " + "(" * n + '"a"' + ")" * n,
            'start: start start | "a" | ',
            "start: A\nA: /(.*a){30}/ & /(.*b){30}/ & ~/(.*c){30}/",
            "start: " + " | ".join(f'"x{i}" start' for i in range(n)),
            'start: "a"~' + str(r.choice((n, 10**6, 10**12))),
            "start: %json " + "[" * n,
            "start: " + words,
            r.choice(TEXTS),
        ))
    )  # fmt: skip


def schema(r: random.Random) -> Request:
    """A JSON schema, in one of the fields that take one."""
    n = r.choice((5, 100, 2000, 20_000))
    refs = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)} | {f"a{n}": {"type": "null"}}
    nested: Any = {"type": "string"}
    for _ in range(min(n, 400)):
        nested = r.choice(({"type": "array", "items": nested}, {"anyOf": [nested, {"not": {"enum": [1]}}]}))
    objects = {
        f"a{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/a{i + 1}"}}, "required": ["a"]} for i in range(n)
    } | {f"a{n}": {}}
    patterns = ("(a+)+$", "(.*a){40}", "((a{1,999}){1,999}){1,999}", "[", "\\p{L}{500}", "^(?=a)b")
    made = r.choice((
        {"$ref": "#/$defs/a0", "$defs": refs}, {"$ref": "#/$defs/a0", "$defs": objects}, {"$ref": "#"},
        {"$ref": "http://127.0.0.1:1/x"},
        {"enum": [f"x{i}" for i in range(n)]},
        {"allOf": [{"properties": {f"p{i}_{j}": {} for i in range(30)}} for j in range(n // 100)]},
        {"type": "string", "minLength": n, "maxLength": n * n},
        {"type": "array", "items": {}, "minItems": n, "maxItems": 10**9},
        {"type": "string", "pattern": r.choice(patterns)},
        {"type": "integer", "multipleOf": 1e-300}, {"type": "number", "minimum": 1e308, "maximum": -1e308},
        {"type": r.choice(TEXTS)},
        {"x-guidance": {"whitespace_pattern": "(a*)*", "lenient": True}, "type": "object"}, {"properties": {t: {} for t in TEXTS}},
        {"oneOf": [{"required": [str(i)]} for i in range(n // 20)]}, {"patternProperties": {"(.*)*": {}}}, nested,
    ))  # fmt: skip
    form = {"type": "json_schema", "name": "x", "schema": made}
    tool = {"type": "function", "function": {"name": r.choice(("f", *TEXTS)), "parameters": made}}
    return r.choice((
        lambda: _chat(response_format={"type": "json_schema", "json_schema": form}),
        lambda: _chat(guided_json=made),
        lambda: _chat(tools=[tool], tool_choice="required"),
        lambda: _body("/v1/completions", {"prompt": "a", "guided_json": made, "n": r.choice((1, 8))}),
        lambda: _body("/v1/responses", {"input": "a", "text": {"format": form}, "max_output_tokens": 4}),
    ))()  # fmt: skip


def regex(r: random.Random) -> Request:
    """A regular expression."""
    n = r.choice((10, 1000, 20_000))
    made = r.choice((
        "(" * n + "a" + ")" * n, "((a{1,1000}){1,1000}){1,1000}", "(.*a){30}.{500}b", "|".join(f".*{i}.*" for i in range(n // 10)),
        "[" * n, "a" * n, f"a{{{n}}}", "(?R)", "\\1", "(?<!a)b", "." * n, "(a|b|ab)*c", "(.|\\n)*" * 50, r.choice(TEXTS),
    ))  # fmt: skip
    return _body("/v1/completions", {"prompt": "a", "max_tokens": r.choice((4, 64)), "guided_regex": made, "temperature": 1})


def parts(r: random.Random) -> Request:
    """Malformed messages, tools and message parts."""
    odd: Any = r.choice(
        (None, 3, [], {}, [[]], [None], {"type": "text"}, [{"type": "text", "text": {"a": 1}}], [{"type": "image_url"}], *TEXTS)
    )
    message: dict[str, Any] = {"role": r.choice(("user", "assistant", "tool", "system", "developer", "owner", "")), "content": odd}
    message |= r.choice(
        ({}, {"tool_calls": odd}, {"name": odd}, {"tool_calls": [{"function": odd}]}, {"__class__": odd, "items": odd})
    )
    many = [message] * r.choice((1, 2, 500 if len(str(odd)) < 5000 else 9))
    return r.choice((
        lambda: _chat(messages=many),
        lambda: _chat(tools=odd),
        lambda: _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": odd, "description": r.choice(TEXTS)}}]),
        lambda: _chat(tool_choice=odd, chat_template=r.choice(TEXTS), chat_template_kwargs=odd),
        lambda: _body("/tokenize", {"messages": many}),
        lambda: _body("/v1/responses", {"input": [{"type": r.choice(("message", "function_call", "odd", None)), **message}]}),
        lambda: _body("/v1/responses", {"input": "a", "tools": odd, "conversation": odd, "previous_response_id": odd}),
        lambda: _body("/v1/embeddings", {"input": odd}),
    ))()  # fmt: skip


def ids(r: random.Random) -> Request:
    """Token ids inside and outside the vocabulary."""
    penalty, some = r.choice(NUMBERS), [r.randrange(300)] * 40
    numbers = [r.choice(NUMBERS) for _ in range(r.choice((1, 3, 40)))]
    return r.choice((
        lambda: _body("/v1/completions", {"prompt": numbers, "max_tokens": 2, "echo": True, "logprobs": 3}),
        lambda: _body("/v1/completions", {"prompt": some, "max_tokens": 2, "repetition_penalty": penalty}),
        lambda: _chat(logit_bias={str(r.choice(NUMBERS)): r.choice(NUMBERS), "5": -100}),
        lambda: _body("/v1/embeddings", {"input": r.choice((numbers, [numbers] * 3))}),
        lambda: _body("/detokenize", {"tokens": numbers}),
    ))()  # fmt: skip


def sizes(r: random.Random) -> Request:
    """Numbers and lengths at and beyond the limits."""
    names = (
        "max_tokens",
        "n",
        "seed",
        "top_k",
        "top_p",
        "min_p",
        "min_tokens",
        "temperature",
        "logprobs",
        "best_of",
        "frequency_penalty",
    )
    form = r.choice(("base64", "x"))
    drawn = {r.choice(names): r.choice(NUMBERS) for _ in range(2)}
    stops = [r.choice(("a" * 999 + "b", *TEXTS)) for _ in range(r.choice((1, 16, 17)))]
    return r.choice((
        lambda: _body("/v1/completions", {"prompt": "a", "max_tokens": 3, **drawn}),
        lambda: _body("/v1/completions", {"prompt": ["a"] * r.choice((1, 200, 300)), "max_tokens": 1}),
        lambda: _body("/v1/completions", {"prompt": r.choice(TEXTS), "suffix": r.choice(TEXTS), "max_tokens": 1}),
        lambda: _chat(n=r.choice((1, 16, 128)), stop=stops, max_tokens=8),
        lambda: _chat(messages=[{"role": "user", "content": r.choice(TEXTS) * r.choice((1, 30))}]),
        lambda: _body("/v1/embeddings", {"input": "a", "dimensions": r.choice(NUMBERS), "encoding_format": form}),
        lambda: _body("/tokenize", {"prompt": r.choice(TEXTS) * 20}),
    ))()  # fmt: skip


def bodies(r: random.Random) -> Request:
    """Bodies that are no JSON, or no JSON object."""
    n = r.choice((100, 5000, 100_000))
    path = r.choice(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"))
    return path, r.choice((
        b"[" * n, b'{"a":' * n + b"1" + b"}" * n, b"", b"null", b"\xff\xfe", b'{"messages": NaN}', b'{"seed": ' + b"9" * n + b"}",
        b'{"prompt": "' + b"\\ud800" * 50 + b'"}', b'{"prompt": "a", "prompt": 3}', b"{" + b'"k": 1,' * n + b'"k": 1}', bytes(n),
    ))  # fmt: skip


KINDS: tuple[Callable[[random.Random], Request], ...] = (lark, schema, regex, parts, ids, sizes, bodies)
