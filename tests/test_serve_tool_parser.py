"""Calls told apart from text as both come, for answers of every known form that are cut anywhere."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tenfold.serve.api.tool_parser import Arguments, CallBegins, Said, ToolParser

NAMES = {"weather", "now", 'a "b"'}
PLAIN = st.text(alphabet='ab {}[]"\\:,<tool_c>/é\n', max_size=30)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | PLAIN, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(PLAIN, inner, max_size=3), max_leaves=6)  # fmt: skip
ARGUMENTS = st.dictionaries(PLAIN, VALUES, max_size=3)
CALLS = st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS)
KEYS = st.sampled_from(["arguments", "parameters"])


@st.composite
def written(draw, call):
    """JSON of a call as models write it: keys in any order, spaces or none, arguments as JSON or as text of it."""
    name, arguments = call
    value = draw(st.sampled_from([arguments, json.dumps(arguments)]))
    pairs = draw(st.permutations([("name", name), (draw(KEYS), value), *draw(st.sampled_from([[], [("type", "function")]]))]))
    spaces = draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,\n ", " : ")]))
    return json.dumps(dict(pairs), separators=spaces, ensure_ascii=draw(st.booleans()))


@st.composite
def answers(draw):
    """An answer of a known form, with its calls."""
    calls = draw(st.lists(CALLS, min_size=1, max_size=3))
    said = [draw(written(call)) for call in calls]
    if draw(st.booleans()):
        return draw(st.sampled_from(["", " \n", "<|python_tag|>"])) + draw(st.sampled_from(["; ", "\n", ";"])).join(said), calls
    before = draw(st.text(alphabet="ab <tol_c\n.", max_size=20)) + draw(st.sampled_from(["", "Let me see.\n"]))
    return before + "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in said), calls


def read(names, text, cuts=(), most=None):
    """What a parser makes of a text that comes in pieces."""
    parser, places = ToolParser(names, most), sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [piece for a, b in pairwise(places) for piece in parser.push(text[a:b])]
    return parser, pieces + list(parser.end())


def folded(pieces):
    """The text and the calls that pieces come to."""
    text, calls = "", {}
    for piece in pieces:
        if isinstance(piece, Said):
            text += piece.text
        elif isinstance(piece, CallBegins):
            assert piece.number == len(calls)
            calls[piece.number] = [piece.name, ""]
        else:
            assert isinstance(piece, Arguments) and piece.text
            calls[piece.number][1] += piece.text
    return text, list(calls.values())


@given(answers(), st.lists(st.integers(0, 1000), max_size=20), st.sampled_from([None, 1]))
def test_calls_are_found_however_the_text_is_cut(answer, cuts, most):
    text, expected = answer
    parser, pieces = read(NAMES, text, cuts, most)
    said, calls = folded(pieces)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == expected[:most]
    assert [[call.name, call.arguments] for call in parser.calls] == calls and all(call.whole for call in parser.calls)
    assert said == parser.content and said.strip() == (text.partition("<tool_call>")[0].strip() if said else "")


@given(PLAIN | answers().map(lambda answer: answer[0]), st.integers(0, 400), st.lists(st.integers(0, 1000), max_size=20))
def test_an_answer_that_ends_anywhere_is_read_alike_in_one_piece_and_in_many(text, end, cuts):
    text = text[:end]
    whole, pieces = folded(read(NAMES, text)[1]), folded(read(NAMES, text, cuts)[1])
    assert whole == pieces
    if not whole[1]:
        assert whole[0] == text  # nothing of a text without calls is lost
    assert folded(read(set(), text, cuts)[1]) == (text, [])
    assert folded(read({"other"}, text, cuts)[1]) == (text, [])


def test_arguments_come_while_they_are_written():
    parser = ToolParser({"weather"})
    assert list(parser.push('I look.<tool_call>\n{"name": "weather", "arg')) == [Said("I look.")]
    begun, first = parser.push('uments": {"city": "Ro')
    assert begun.name == "weather" and first == Arguments(0, '{"city": "Ro')
    assert list(parser.push('me"}}')) == [Arguments(0, 'me"}')] and parser.calls[0].whole
