"""Write the finished model in Hugging Face layout."""

from tenfold.model.io.huggingface import write_model
from tenfold.train import checkpoint
from tenfold.train.export import export_model
from tenfold.train.hook import Hook
from tenfold.train.result import RunResult
from tenfold.train.run import Run


class Export(Hook):
    """Writes the model of a finished run to `model/` in the run's directory."""

    def end(self, run: Run, result: RunResult) -> None:
        if not result.finished:
            return
        directory, source = run.directory / "model", run.task.directory
        if run.dims.alone:
            run.task.finish(run.model, run.directory)
            write_model(run.model, directory, tokenizer_directory=source)  # type: ignore[arg-type]
        elif run.is_first:
            newest = checkpoint.latest(run.directory / "checkpoint")
            assert newest is not None
            export_model(newest, run.spec, directory, tokenizer_directory=source)
