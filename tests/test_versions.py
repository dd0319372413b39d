"""Whatever is written and read again says its version: a later one is refused in one sentence, an older one is read or refused."""

import hashlib
import json
import shutil
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from sqlalchemy import create_engine

from tenfold.data.images.corpus import build_images
from tenfold.data.text.corpus import open_corpus
from tenfold.plan import report
from tenfold.plan.costs.consequences import consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.document import document
from tenfold.plan.plan import solve
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.validation.calibrate import Calibration, calibrated, write
from tenfold.plan.workload.machine import machine
from tenfold.scale import documents
from tenfold.scale.generations import read_settings
from tenfold.scale.law import Law, fit_law
from tenfold.scale.options import ClimbSettings
from tenfold.scale.points import Point
from tenfold.serve.api.keys import Keys, make_key
from tenfold.serve.feedback.feedback import Feedback
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import Forecast, forecast, normal, read_forecasts
from tenfold.spec.laws import read_law
from tenfold.spec.vision import VisionSpec
from tenfold.train import checkpoint
from tenfold.train.config import RunConfig
from tenfold.train.metrics import MetricsWriter, read_metrics
from tenfold.train.run_file import read_config, write_config

H100 = machine("h100")


def edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def stamp(path, version, key="version"):
    """Give a JSON file another version, or none."""
    edit(path, lambda d: {k: v for k, v in {**d, key: version}.items() if v is not None})


class TextCorpus:
    def write(self, folder, corpus):
        shutil.copytree(corpus.directory, folder, dirs_exist_ok=True)

    def stamp(self, folder, version):
        stamp(folder / "manifest.json", version, "format")

    def read(self, folder):
        open_corpus(folder)


class Images:
    def write(self, folder, corpus):
        (folder / "in").mkdir()
        for name in ("a", "b"):
            Image.new("RGB", (16, 16)).save(folder / "in" / f"{name}.png")
            (folder / "in" / f"{name}.txt").write_text("nothing")
        self.corpus = corpus
        self.read(folder)

    def stamp(self, folder, version):
        stamp(folder / "out" / "manifest.json", version, "format")

    def read(self, folder):
        vision = VisionSpec(image_size=16, patch_size=4, dim=32, n_layers=1, n_heads=2, patch_token=1)
        build_images(folder / "in", folder / "out", self.corpus, vision)


class Checkpoint:
    def write(self, folder, corpus):
        self.model = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.path = checkpoint.save(folder, 1, self.model, self.optimizer, {})

    def stamp(self, folder, version):
        manifest = json.loads((self.path / "manifest.json").read_text())
        facts = {k: v for k, v in {**manifest, "version": version}.items() if v is not None and k != "sha256"}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        (self.path / "manifest.json").write_text(json.dumps({**facts, "sha256": digest}))

    def read(self, folder):
        checkpoint.load(self.path, self.model, self.optimizer)


class RunFile:
    def write(self, folder, corpus):
        write_config(RunConfig(tokens=5), folder / "run.toml")

    def stamp(self, folder, version):
        path = folder / "run.toml"
        path.write_text(path.read_text().replace("version = 2", f"version = {version}"))

    def read(self, folder):
        assert read_config(folder / "run.toml").tokens == 5


class FlatRunFile(RunFile):
    def stamp(self, folder, version):
        (folder / "run.toml").write_text("tokens = 5\nseq_len = 64\n" if version is None else f"tokens = 5\nversion = {version}\n")


class Metrics:
    def write(self, folder, corpus):
        with MetricsWriter(folder) as metrics:
            metrics.write("start", version=RunConfig(tokens=5).version)

    def stamp(self, folder, version):
        stamp(folder / "run.jsonl", version)

    def read(self, folder):
        assert [row["event"] for row in read_metrics(folder / "run.jsonl")] == ["start"]


class LawFile:
    def write(self, folder, corpus):
        points = [Point(n, d, 6 * n * d, 1 + n**-0.3 + d**-0.3) for n in (1e6, 2e6, 4e6) for d in (1e7, 2e7, 4e7)]
        law = fit_law(points)
        (folder / "law.json").write_text(json.dumps(law.to_dict()))

    def stamp(self, folder, version):
        stamp(folder / "law.json", version)
        if version is None:
            stamp(folder / "law.json", None, "optimum")

    def read(self, folder):
        Law.from_dict(read_law(folder / "law.json"))


class Climb:
    def write(self, folder, corpus):
        documents.write(folder / "climb.json", asdict(ClimbSettings()))

    def stamp(self, folder, version):
        stamp(folder / "climb.json", version)

    def read(self, folder):
        assert read_settings(folder) == ClimbSettings()


class ForecastAndScore(Climb):
    def read(self, folder):
        assert documents.read(folder / "climb.json")["seed"] == 0


class RecordOfForecasts:
    def write(self, folder, corpus):
        forecast(folder, Forecast(key="k", who="me", kind="loss", unit="nats", quantiles=normal(1.0, 0.1)))

    def stamp(self, folder, version):
        stamp(folder / "forecasts.jsonl", version)

    def read(self, folder):
        assert [one.forecast.key for one in read_forecasts(folder)] == ["k"]


class Plan:
    def write(self, folder, corpus):
        plan = solve(Request(flops=1e20), GpuRequest(gpus=64), H100, StepRequest(), folder)
        whole = document(plan.workload, consequences(plan.workload, SiteOptions()), notes=["kept"])
        (folder / "plan.json").write_text(json.dumps(whole))

    def stamp(self, folder, version):
        stamp(folder / "plan.json", version, "schema")

    def read(self, folder):
        report.terminal(json.loads((folder / "plan.json").read_text()))


class Calibrated:
    def write(self, folder, corpus):
        write(Calibration(H100.accelerator, H100.constants, H100.constants, 1.0, 1.0, 1.0, 1.0, 1.0, 0.4, "run"), folder)

    def stamp(self, folder, version):
        edit(folder / "calibration.json", lambda d: {k: {**v, "version": version or 1} for k, v in d.items()})

    def read(self, folder):
        assert "Calibrated" in calibrated(H100, "h100", folder)[1]


class KeysFile:
    def write(self, folder, corpus):
        self.key = make_key(folder / "keys.json", "ann")

    def stamp(self, folder, version):
        edit(folder / "keys.json", lambda d: d["keys"] if version is None else {**d, "version": version})

    def read(self, folder):
        assert Keys.read(folder / "keys.json").owner(self.key) == "ann"


class FeedbackDatabase:
    def write(self, folder, corpus):
        self.url = f"sqlite:///{folder}/feedback.db"
        self.hash = Feedback(self.url).user_hash("ann")

    def stamp(self, folder, version):
        statement = "delete from settings" if version is None else f"update settings set value = {version}"
        with create_engine(self.url).begin() as connection:
            connection.exec_driver_sql(f"{statement} where name = 'version'")

    def read(self, folder):
        assert Feedback(self.url).user_hash("ann") == self.hash


# The kind, the version that is written, an older one (None: as it was before files said one), and what is said of that; "" if read.
KINDS = [
    (TextCorpus, 3, 1, "delete it and build the corpus again"),
    (Images, 2, 1, "delete it, and run the command again to prepare the images"),
    (Checkpoint, 2, None, "has version 1, and this Tenfold reads version 2: train in another directory"),
    (RunFile, 2, 1, ""),
    (FlatRunFile, 2, None, "gives seq_len, which is seq_len in the table [data]: write it there"),
    (Metrics, 2, None, ""),
    (LawFile, 3, None, "one of an older version without 'optimum'"),
    (Climb, 1, None, ""),
    (ForecastAndScore, 1, None, ""),
    (RecordOfForecasts, 1, None, ""),
    (Plan, 3, 2, "make it again by `tenfold plan`"),
    (Calibrated, 2, None, "remove it and calibrate again"),
    (KeysFile, 2, None, ""),
    (FeedbackDatabase, 1, None, ""),
]


@pytest.mark.parametrize(("kind", "current", "older", "sentence"), KINDS, ids=[kind[0].__name__ for kind in KINDS])
def test_another_version_is_read_or_refused_in_one_sentence(kind, current, older, sentence, corpus, tmp_path):
    file = kind()
    file.write(tmp_path, corpus)
    file.read(tmp_path)
    file.stamp(tmp_path, older)
    if sentence:
        with pytest.raises(TenfoldError) as refused:
            file.read(tmp_path)
        assert sentence in str(refused.value) and "\n" not in str(refused.value)
    else:
        file.read(tmp_path)


@pytest.mark.parametrize(("kind", "current"), [kind[:2] for kind in KINDS], ids=[kind[0].__name__ for kind in KINDS])
def test_a_later_version_asks_for_a_later_tenfold(kind, current, corpus, tmp_path):
    file = kind()
    file.write(tmp_path, corpus)
    file.stamp(tmp_path, current + 1)
    with pytest.raises(TenfoldError) as refused:
        file.read(tmp_path)
    assert f"has version {current + 1}, and this Tenfold reads version" in str(refused.value)
    assert str(refused.value).endswith("use the Tenfold that wrote it, or a later one.")
