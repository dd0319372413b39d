"""The documents: every command line of them parses, what the guides say to run runs, and the site is built without a broken link."""

import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from slurm_cluster import missing

from bench.guides import DOCUMENTS, blocks, cloned, run
from tenfold.cli.commands import find
from tenfold.cli.options import UsageError

ROOT = Path(__file__).parents[1]
ALL = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^\s*(?:.*(?:&& |; |\| |\$\())?(?:torchrun .*-m )?(tenfold .+)$")


def spelled_out(words):
    """`law fit|limit x` as both commands that it stands for."""
    return [
        list(choice) for choice in product(*(word.split("|") if re.fullmatch(r"[a-z0-9|-]+", word) else [word] for word in words))
    ]


def parse(line):
    """Read a command line with the command's own parser. Raises UsageError, or ValueError where its quotes are not closed."""
    line = re.split(r"\s(?:&&|;|\||&|>)(?:\s|$)", line)[0]
    for words in spelled_out(shlex.split(line, comments=True)[1:]):
        parser, rest = find(words)
        if parser is not None:
            parser.call(rest)


def command_lines(text):
    """Of code blocks, with lines that a backslash continues."""
    fences = "\n".join(re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    indented = "\n".join(re.findall(r"^    .*$", text, re.MULTILINE))
    lines = re.sub(r"\\\n\s*", " ", f"{fences}\n{indented}").splitlines()
    return [found[1] for line in lines if (found := COMMAND.match(line))]


@pytest.mark.parametrize("document", ALL)
def test_every_command_line_of_a_document_parses(document):
    wrong = []
    for line in command_lines((ROOT / document).read_text()):
        try:
            parse(line)
        except (UsageError, ValueError) as error:
            wrong.append(f"{line}: {error}")
    assert not wrong


@pytest.mark.parametrize("document", ALL)
def test_what_stands_in_a_sentence_names_commands_and_options_that_there_are(document):
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for line in re.findall(r"(?<!`)`(tenfold [^`]+)`", text):
        if re.search(r"--help|^tenfold [A-Z]", line):  # of the command line as a whole: `tenfold ROOM VERB`
            continue
        try:
            parse(" ".join(line.split()))
        except UsageError as error:  # arguments and values may be left out in a sentence
            if "There is no command" in str(error) or "does not take" in str(error):
                wrong.append(f"{line}: {error}")
    assert not wrong


def test_wrong_command_lines_are_found():
    text = "```sh\ncd x && tenfold climb --hoem y\n```\n\n    tenfold law fit|lmit points.csv\n"
    assert command_lines(text) == ["tenfold climb --hoem y", "tenfold law fit|lmit points.csv"]
    for line in command_lines(text):
        with pytest.raises(UsageError):
            parse(line)


def test_a_document_stops_at_the_first_command_that_fails(tmp_path):
    text = "```sh\nx=1\necho $x\n```\n\n```text\nfalse\n```\n\n```sh\nsleep 600 &\necho $((x + 1)); false | cat\necho never\n```\n\n```sh\necho never\n```\n"
    first, second = run(text, tmp_path)
    assert (first["exit"], first["printed"]) == (0, "1\n")
    assert (second["exit"], second["printed"]) == (1, "2\n")


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text()
    assert "tenfold learn next" in commands and "--max-slowdown" in commands
    assert "warmup" in (tmp_path / "reference" / "run-file" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_runs_in_a_clean_clone(document, tmp_path):
    if "slurm_cluster.py" in (text := (ROOT / document).read_text()) and missing():
        pytest.skip(missing())
    ran = run(text, cloned(tmp_path, sys.executable))
    assert [row["exit"] for row in ran] == [0] * len(blocks(text)), ran[-1]["commands"] + ran[-1]["printed"]
