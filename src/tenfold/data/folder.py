"""Folders that are there whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.spec.errors import TenfoldError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well, and is deleted when it does not.

    Raises TenfoldError where the disk is full or may not be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield scratch
        scratch.replace(out)
    except OSError as error:
        raise TenfoldError(f"{out} could not be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
