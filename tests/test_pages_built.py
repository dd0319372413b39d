"""The libraries that the pages hold are those which their package files name: built anew, they are the same to the byte."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tenfold"
OFFLINE = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN")
NPM = shutil.which("npm")


@pytest.mark.skipif(NPM is None, reason="npm is not installed")
@pytest.mark.parametrize(
    ("package", "built"),
    [
        ("console/libraries", ["console/web/libraries"]),
        (
            "serve/page/libraries",
            ["serve/page/static/libraries.js", "serve/page/static/katex", "serve/page/libraries/LICENSES.txt"],
        ),
    ],
)
def test_what_the_page_takes_from_other_packages_is_built_again_to_the_byte(package, built, tmp_path):
    for file in ("package.json", "package-lock.json", "entry.js"):
        if (SOURCE / package / file).exists():
            (tmp_path / package).mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCE / package / file, tmp_path / package)
    for path in built:
        (tmp_path / path if (SOURCE / path).is_dir() else (tmp_path / path).parent).mkdir(parents=True, exist_ok=True)
    quiet = {**os.environ, "npm_config_audit": "false", "npm_config_fund": "false", "npm_config_update_notifier": "false"}
    for words in (["ci"], ["run", "build"]):
        done = subprocess.run([NPM, *words], cwd=tmp_path / package, env=quiet, capture_output=True, text=True)
        if any(code in done.stderr for code in OFFLINE):
            pytest.skip("the registry of npm cannot be reached")
        assert done.returncode == 0, done.stderr[-2000:]
    assert files(tmp_path, built) == files(SOURCE, built)


def files(root, paths):
    """What is in the files under these paths, by their names."""
    found = [file for path in paths for file in [root / path, *sorted((root / path).rglob("*"))] if file.is_file()]
    return {str(file.relative_to(root)): file.read_bytes() for file in found}
