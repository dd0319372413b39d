"""Files and folders are there whole or not at all, whatever kills their writers, fills the disk, or writes beside them."""

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tenfold.spec import files
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import append_line, atomic_file, atomic_folder, holder, one_at_a_time, read_lines, write_json, write_text

WRITE = """
import itertools, json, sys
from pathlib import Path
from tenfold.spec.files import *
here, name = Path(sys.argv[1]), sys.argv[2]
"""
STATE = """
for i in itertools.count(int(name)):
    write_json(here / "state.json", {"number": i, "filling": "x" * 200_000})
    print(i, flush=True)
"""
FOLDER = """
for i in itertools.count(int(name)):
    with atomic_folder(here / "model", replace=True) as scratch:
        for file in "abcdef":
            (scratch / file).write_text(str(i))
    print(i, flush=True)
"""
LINES = """
for i in itertools.count(int(name)):
    append_line(here / "run.jsonl", {"number": i, "filling": "x" * 50_000})
    print(i, flush=True)
"""
TURNS = """
for _ in range(20):
    with one_at_a_time(here / "lock", "counting", wait=True):
        count = int((here / "count").read_text())
        (here / "count").write_text(str(count + 1))
"""
BESIDE = """
for _ in range(20):
    write_text(here / "state", name * 300_000)
"""
HOLD = """
with one_at_a_time(here / "lock", "holding"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(script, folder, name="0"):
    return subprocess.Popen(
        [sys.executable, "-c", WRITE + script, str(folder), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def tmpfs(folder, options):
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def kills(script, folder, read, times=6):
    """Kill a writer of rising numbers again and again: what `read` finds is whole, and no older than what was said."""
    draw, said = random.Random(0), -1
    for _ in range(times):
        child = start(script, folder, str(said + 1))
        lines = [child.stdout.readline()]
        time.sleep(draw.random() * 0.2)
        child.send_signal(signal.SIGKILL)
        lines += child.communicate()[0].splitlines()
        said = max([said, *(int(line) for line in lines if line.strip())])
        assert said <= read() <= said + 1
    return said


def test_kill_9_leaves_the_old_file_or_the_new_and_the_next_writer_clears_up(tmp_path):
    kills(STATE, tmp_path, lambda: json.loads((tmp_path / "state.json").read_text())["number"])
    write_json(tmp_path / "state.json", 1)
    assert names(tmp_path) == ["state.json"]


def test_kill_9_leaves_the_old_folder_or_the_new_and_the_next_writer_clears_up(tmp_path):
    def number():
        found = {(tmp_path / "model" / file).read_text() for file in "abcdef"}
        assert len(found) == 1 and len(names(tmp_path / "model")) == 6
        return int(found.pop())

    kills(FOLDER, tmp_path, number)
    with atomic_folder(tmp_path / "model", replace=True):
        pass
    assert names(tmp_path) == ["model"] and not names(tmp_path / "model")


def test_kill_9_loses_no_line_that_was_said(tmp_path):
    said = kills(LINES, tmp_path, lambda: read_lines(tmp_path / "run.jsonl")[-1]["number"])
    assert {row["number"] for row in read_lines(tmp_path / "run.jsonl")} >= set(range(said + 1))


@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9)), max_size=5), cut=st.floats(0, 1))
def test_a_line_after_a_torn_one_stands_alone(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("lines") / "run.jsonl"
    for row in rows:
        append_line(path, row)
    content = path.read_bytes() if rows else b""
    left = content[: round(cut * len(content))]
    path.write_bytes(left)
    append_line(path, {"last": True})
    whole = left.count(b"\n") + (left.rpartition(b"\n")[2].endswith(b"}") and left + b"\n" == content[: len(left) + 1])
    assert read_lines(path) == [*rows[:whole], {"last": True}]


@given(st.lists(st.tuples(st.text(), st.booleans()), max_size=6))
def test_a_file_holds_what_was_last_written_well(tmp_path_factory, writes):
    folder = tmp_path_factory.mktemp("file")
    write_text(folder / "a.txt", "first")
    last = "first"
    for text, well in writes:
        with suppress(KeyError), atomic_file(folder / "a.txt") as scratch:
            scratch.write_text(text, errors="replace")
            if not well:
                raise KeyError
            last = scratch.read_text()
    assert (folder / "a.txt").read_text() == last and names(folder) == ["a.txt"]


def test_writers_of_one_file_take_turns(tmp_path):
    children = [start(BESIDE, tmp_path, name) for name in "abcd"]
    while any(child.poll() is None for child in children):
        with suppress(FileNotFoundError):
            text = (tmp_path / "state").read_text()
            assert text == text[0] * 300_000
    assert not any(child.returncode for child in children) and names(tmp_path) == ["state"]


def test_one_at_a_time_waits_or_refuses_and_is_free_when_its_holder_dies(tmp_path):
    (tmp_path / "count").write_text("0")
    children = [start(TURNS, tmp_path) for _ in range(4)]
    assert not any(child.wait() for child in children)
    assert (tmp_path / "count").read_text() == "80" and names(tmp_path) == ["count"]

    other = start(HOLD, tmp_path)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(TenfoldError, match=rf"Another process is training \(process {other.pid} on .*since 2.*\): wait"):  # noqa: SIM117
        with one_at_a_time(tmp_path / "lock", "training"):
            pass
    other.kill()
    other.wait()
    with one_at_a_time(tmp_path / "lock", "training"):
        pass
    assert names(tmp_path) == ["count"]


def test_a_file_system_without_locks_has_no_holder(tmp_path, monkeypatch):
    def flock(stream, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with one_at_a_time(tmp_path / "lock", "training"):
        assert holder(tmp_path / "lock") is None
    assert names(tmp_path) == []


def test_a_full_disk_leaves_what_was_there_and_no_scratch(tmp_path):
    with tmpfs(tmp_path / "disk", "size=200k") as disk:
        write_json(disk / "state.json", "old")
        append_line(disk / "run.jsonl", {"number": 0})
        for free in (0, 4096, 40_960):
            (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - free))
            for write in (
                lambda: write_json(disk / "state.json", "x" * 60_000),
                lambda: append_line(disk / "run.jsonl", {"number": 1, "filling": "x" * 60_000}),
                lambda: make_folder_of(disk / "model", 60_000),
            ):
                with pytest.raises(TenfoldError, match=r"could not be written: the disk is full; free some room\."):
                    write()
            (disk / "ballast").unlink()
            assert json.loads((disk / "state.json").read_text()) == "old" and read_lines(disk / "run.jsonl") == [{"number": 0}]
            assert names(disk) == ["run.jsonl", "state.json"]
        write_json(disk / "state.json", "new")
        append_line(disk / "run.jsonl", {"number": 1})
        make_folder_of(disk / "model", 10)
        assert json.loads((disk / "state.json").read_text()) == "new" and read_lines(disk / "run.jsonl")[-1] == {"number": 1}


def make_folder_of(path, size):
    with atomic_folder(path) as scratch:
        (scratch / "file").write_bytes(bytes(size))


def test_a_read_only_folder_is_one_sentence(tmp_path):
    with tmpfs(tmp_path / "disk", "ro") as disk:
        for write in (
            lambda: write_json(disk / "state.json", 1),
            lambda: write_json(disk / "new" / "state.json", 1),
            lambda: append_line(disk / "run.jsonl", {}),
            lambda: make_folder_of(disk / "model", 1),
        ):
            with pytest.raises(TenfoldError, match=rf"^{disk}(/[a-z.]+)? could not be written: read-only file system\.$"):
                write()


def test_a_file_that_the_block_reads_is_named_and_not_the_one_it_writes(tmp_path):
    with pytest.raises(TenfoldError, match=rf"^{tmp_path}/source: no such file or directory\.$"), atomic_folder(tmp_path / "out"):
        (tmp_path / "source").read_text()
    assert not names(tmp_path)


def test_folders_of_like_names_do_not_touch_one_another(tmp_path):
    with atomic_folder(tmp_path / "c-old") as older:
        make_folder_of(tmp_path / "c", 1)
        make_folder_of(tmp_path / "[c]*", 1)
        (older / "file").write_text("x")
    assert {name: names(tmp_path / name) for name in names(tmp_path)} == {key: ["file"] for key in ("c-old", "c", "[c]*")}


def test_links_devices_and_permissions_stay_what_they_are(tmp_path):
    write_text(tmp_path / "keys", "old")
    (tmp_path / "keys").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "keys")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "keys").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == "through" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_private_file_of_a_library_gets_the_mode_of_others(tmp_path):
    """`save_file` of safetensors puts a file of its own, which no other may read, in the place of the scratch file."""
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "x.safetensors") as scratch:
            save_file({"x": np.zeros(3)}, scratch)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_a_folder_that_holds_something_is_refused(tmp_path):
    make_folder_of(tmp_path / "out", 1)
    with pytest.raises(TenfoldError, match="is there already"):
        make_folder_of(tmp_path / "out", 2)
    assert (tmp_path / "out" / "file").stat().st_size == 1 and names(tmp_path) == ["out"]
