"""What commands print: names and texts as they are, no figure lost on a narrow terminal, nothing wrapped or coloured in a pipe."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tenfold.spec.terminal import Figures, console, progress

NAMES = ("x[/b].txt", "[red]", "[/", ":smile:", "[link=a]b", "é{0}%s", "a\\[b]")
HOSTILE = st.text(st.sampled_from("[]/\\:ab={}"), min_size=1, max_size=12)
FIGURE = st.floats(-1e12, 1e12).map(lambda x: f"{x:.6g}")


def rendered(what, width):
    made = Console(width=width, markup=False, emoji=False, highlight=False, force_terminal=False)
    with made.capture() as shown:
        made.print(what)
    return shown.get()


def on_terminal(command, columns):
    """What a command prints on a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm-256color"}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # Linux says so where the other end is closed
        pass
    assert child.wait() == 0, said
    return said.decode()


@given(
    header=st.lists(st.sampled_from(["", "measured", "80 % interval", "N"]), min_size=4, max_size=10),
    rows=st.lists(st.lists(FIGURE, min_size=10, max_size=10), min_size=1, max_size=3),
    names=st.lists(HOSTILE, min_size=3, max_size=3),
    width=st.integers(24, 200),
)
def test_no_figure_is_lost_at_any_width(header, rows, names, width):
    table = Figures("", *header, title="of [b]x[/b]")
    for name, row in zip(names, rows, strict=False):
        table.add_row(name, *row[: len(header)])
    said = rendered(table, width)
    assert all(len(line) <= width for line in said.splitlines())
    for row in rows:
        assert all(figure in said for figure in row[: len(header)][:-1]), said
    together = re.sub(r"[\s│┃]", "", said)
    assert all(name in together for name in names[: len(rows)])


def test_the_words_at_a_tables_end_are_folded_before_figures_are(tmp_path):
    table = Figures("", "GPUs", "layout")
    table.add_row("h100", "16,384", "a sentence that is far too long for a line of any usual terminal, and then some")
    said = rendered(table, 60)
    assert "16,384" in said and "┃" in said and re.sub(r"[\s│]", "", said).count("usualterminal")


@given(HOSTILE | st.sampled_from(NAMES))
def test_texts_are_never_markup(text):
    table = Figures("name", "n", title=text, caption=text)
    table.add_row(text, "1")
    bar = progress(field="text")
    bar.add_task(text, text=text)
    made = console()
    for what, count in ((text, 1), (table, 3), (bar.get_renderable(), 2)):
        with made.capture() as shown:
            made.print(what)
        assert shown.get().count(text) >= count


def test_a_file_whose_name_is_markup_is_built_and_shown(tmp_path):
    folder = tmp_path / "texts"
    (folder / "x[").mkdir(parents=True)  # and b].txt in it
    for number in range(8):
        words = "".join(f"def function_{number}_{i}(a): return a * {i * number}  # number {i}\n" for i in range(120))
        (folder / f"{number}.txt").write_text(words)
    (folder / NAMES[0]).write_bytes(bytes(range(256)) * 20)
    build = [sys.executable, "-m", "tenfold", "data", "build", str(folder), "--out", str(tmp_path / "[b]"), "--vocab-size", "300"]
    said = on_terminal(build, 40)
    assert NAMES[0] in re.sub(r"\s", "", said) and "Traceback" not in said
    show = [sys.executable, "-m", "tenfold", "data", "show", str(tmp_path / "[b]"), "--examples", "1"]
    narrow, piped = on_terminal(show, 40), subprocess.run(show, capture_output=True, text=True, check=True).stdout
    figures = re.findall(r"\d[\d.,]*", piped.split("validation document")[0])
    assert figures and all(figure in narrow for figure in figures)
    assert "\x1b" not in piped


def test_lines_are_not_wrapped_in_a_pipe(tmp_path):
    long = "word " * 200
    script = f"from tenfold.spec.terminal import console; console().print({long!r}); console(stderr=True).print({long!r})"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "40"}
    )
    assert found.stdout == found.stderr == long + "\n"
    assert max(map(len, on_terminal([sys.executable, "-c", script], 40).splitlines())) <= 40


@pytest.mark.parametrize("columns", [40, 100])
def test_a_bar_keeps_its_figures_on_a_narrow_terminal(columns):
    script = (
        "from tenfold.train.progress import TrainingProgress\n"
        "with TrainingProgress(100, 'run[/b]') as bar: bar.update(50, 3.25, 123456.0, 0.42, 77.0); bar._bar.refresh()"
    )
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_terminal([sys.executable, "-c", script], columns))
    assert all(figure in said for figure in ("run[/b]", "loss 3.250", "MFU 42%", "77 W"))
