"""Records of submitted jobs, from which another process can later ask for a job's status, cancel or resize it."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tenfold.launch.job import Handle, Job, Launcher, Resources, open_launcher
from tenfold.launch.job_files import file_name
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import write_json
from tenfold.spec.versions import read_document

VERSION = 1
ENDING = ".job.json"


def write_record(folder: Path, on: str, options: dict[str, Any], handle: Handle) -> Path:
    """Write the record of a job of the launcher `on`, opened with `options`, to `NAME.job.json` in `folder`; returns its path."""
    job = {name: value for name, value in asdict(handle.job).items() if name not in ("function", "arguments")}
    job |= {"files": [str(path) for path in handle.job.files], "directory": None}
    kept = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in options.items()}
    path = folder / f"{file_name(handle.job)}{ENDING}"
    document = {"version": VERSION, "on": on, "options": kept, "id": handle.id, "drained": handle.drained, "job": job}
    write_json(path, document)
    return path


def read_record(path: Path) -> tuple[str, dict[str, Any], Launcher, Handle]:
    """The launcher's name and options, the launcher, and the job's handle. Raises TenfoldError if the file is no valid record."""
    document = read_document(path, VERSION, "submit the job again with `tenfold launch`")
    try:
        options, kept = document["options"] | {"folder": Path(document["options"]["folder"])}, dict(document["job"])
        kept |= {"command": tuple(kept["command"]), "arguments": (), "resources": Resources(**kept["resources"])}
        kept["files"] = tuple(map(Path, kept["files"]))
        job = Job(**{field.name: kept[field.name] for field in fields(Job) if field.name in kept})
        handle = Handle(job, document["id"], drained=document["drained"])
    except (KeyError, TypeError, AttributeError):
        raise TenfoldError(f"{path} is not a job's record: submit the job again with `tenfold launch`.") from None
    return document["on"], options, open_launcher(document["on"], **options), handle


def find_records(folder: Path, name: str | None = None) -> list[Path]:
    """The paths of the records in `folder`: of all jobs, or of the job `name`. Raises TenfoldError if that job has none."""
    known = {path.name.removesuffix(ENDING).removeprefix("tenfold-"): path for path in sorted(folder.glob(f"*{ENDING}"))}
    if name is None:
        return list(known.values())
    asked = file_name(Job(name, command=("true",))).removeprefix("tenfold-")
    if asked not in known:
        raise TenfoldError(
            f"No job {name!r} was submitted from {folder.resolve()}{nearest(asked, known)}: give its folder with --out."
        )
    return [known[asked]]
