"""Passwords and keys are in no message, and their files and those of feedback are their owner's alone."""

import json
import os
import stat
import subprocess
import sys

import pytest

from tenfold.serve.api.keys import Keys, make_key
from tenfold.serve.feedback.feedback import Feedback
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import one_at_a_time


def modes(folder, pattern):
    found = list(folder.glob(pattern))
    assert found
    return {stat.S_IMODE(file.stat().st_mode) for file in found}


SECRET_URLS = (
    "postgresql://a:{}@127.0.0.1:1/x", "postgresql://h:{}/x", "postgresql://a:x/{}@h/y", "postgresql://a:p@{}@h/y", "nonsense {}",
    "sqlite:////nowhere/{}/../f.db?password={}", "nobody://a:{}@h/x?sslpassword={}",
)  # fmt: skip


@pytest.mark.parametrize("url", SECRET_URLS)
def test_the_password_of_a_database_is_in_no_message(url):
    secret = "s3cr3t-pw"
    with pytest.raises(TenfoldError) as said:
        Feedback(url.replace("/nowhere/{}", "/nowhere").format(secret, secret))
    assert secret not in str(said.value) and str(said.value).endswith(".")


def test_a_server_says_no_password_when_it_cannot_start(tmp_path):
    words = [sys.executable, "-m", "tenfold", "serve", tmp_path, "--feedback", SECRET_URLS[0].format("s3cr3t-pw"), "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "s3cr3t-pw" not in done.stdout + done.stderr
    assert "postgresql://a:***@127.0.0.1:1/x cannot be opened" in done.stderr


def test_a_lock_does_not_tell_the_secrets_of_the_command_that_holds_it(tmp_path, monkeypatch):
    key = make_key(tmp_path / "keys.json", "ann")
    monkeypatch.setattr(sys, "argv", ["tenfold", "learn", "--data", "postgresql://a:s3cr3t-pw@h/x", "--key", key])
    with one_at_a_time(tmp_path / "lock", "working"):
        with pytest.raises(TenfoldError, match="tenfold learn") as refused, one_at_a_time(tmp_path / "lock", "working"):
            pass
        for text in (str(refused.value), (tmp_path / "lock").read_text()):
            assert "s3cr3t-pw" not in text and key not in text and "***" in text


def test_new_databases_are_their_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        urls = f"sqlite:///{tmp_path / 'plain.db'}", f"sqlite:///file:{tmp_path / 'named.db'}?uri=true"
        stores = [Feedback(url) for url in urls]
        files = sorted(file.name for file in tmp_path.iterdir())
        assert files == [f"{name}.db{end}" for name in ("named", "plain") for end in ("", "-shm", "-wal")] and stores
        assert modes(tmp_path, "*.db*") == {0o600}
    finally:
        os.umask(before)


WATCHED = """
import os, sys
from pathlib import Path
from tenfold.serve.api.keys import make_key

folder, seen = Path(sys.argv[1]), []

def look(event, _):  # before every operation on a file
    if event.startswith("os.") or event == "open":
        with os.scandir(folder) as files:
            seen.extend((entry.stat().st_mode & 0o777, entry.stat().st_size) for entry in files if "lock" not in entry.name)

os.umask(0)
busy = False
def hook(*event):
    global busy
    if not busy:
        busy = True
        look(*event)
        busy = False
sys.addaudithook(hook)
make_key(folder / "keys.json", "ann")
make_key(folder / "keys.json", "bob")
print({mode for mode, size in seen if size}, len(seen))
"""


def test_keys_are_never_readable_by_others_while_they_are_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", WATCHED, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{{{0o600}}} ")


def test_files_of_keys_of_all_versions_are_read_and_damaged_ones_refused(tmp_path):
    file = tmp_path / "keys.json"
    key = make_key(file, "ann", operator=True)
    hashes = json.loads(file.read_text())["keys"]
    plain = {"ann": hashes["ann"].removeprefix("operator:")}
    file.write_text(json.dumps(plain))  # version 1
    assert Keys.read(file).owner(key) == "ann" and not Keys.read(file).operators
    make_key(file, "bob", operator=True)
    assert Keys.read(file).owner(key) == "ann" and Keys.read(file).operators == {"bob"}
    for damaged in ("", "[]", '{"ann": 3}', '{"version": 2}', '{"version": 2, "keys": {"ann": 3}}', '{"version": 2, "keys": {}}'):
        file.write_text(damaged)
        with pytest.raises(TenfoldError, match="serve-key"):
            Keys.read(file)
    with pytest.raises(TenfoldError, match="no keys in"):
        Keys.read(tmp_path / "absent.json")
