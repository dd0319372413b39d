"""Tables of measurements: what is understood, what is refused and by which cell, and software by name."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.cli.commands import run as tenfold
from tenfold.plan.plan import make_plan
from tenfold.plan.request import Request, StepRequest
from tenfold.plan.validation.published import gpt, read_layouts
from tenfold.plan.validation.tables import read_table
from tenfold.plan.validation.validate import validate
from tenfold.plan.workload.machine import machine, stack
from tenfold.plan.workload.memory import activation_bytes, memory
from tenfold.plan.workload.shape import resolve
from tenfold.plan.workload.step_time import step_time
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout

COLUMNS = list(read_table("layouts.csv")[0])
ROW = {
    "model": "Llama 3.1 8B", "gpu": "DGX H100", "n_gpus": "8", "precision": "bf16", "seq_len": "8192", "global_batch_seqs": "128",
    "micro_batch": "1", "tp": "1", "pp": "1", "cp": "2", "iter_time_s": "12.27", "source": "a table of our own",
}  # fmt: skip


def table(path, *rows, delimiter=",", mark=""):
    text = io.StringIO()
    writer = csv.DictWriter(text, [c for c in COLUMNS if c != "stack" or any("stack" in row for row in rows)], delimiter=delimiter)
    writer.writeheader()
    writer.writerows({**dict.fromkeys(writer.fieldnames, ""), **ROW, **row} for row in rows)
    path.write_text(mark + text.getvalue(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"n_gpus": "2,048"}, "row 2, column n_gpus: '2,048'"),
        ({"tp": "3"}, "row 2, column tp: '3' does not divide 8"),
        ({"cp": "3"}, "column cp: '3'"),
        ({"global_batch_seqs": "1"}, "is below 4 data parallel ranks"),
        ({"act_checkpointing": "norm, act"}, "column act_checkpointing: 'norm, act' is none of"),
        ({"dp": "ZeRO-1"}, "column dp: 'ZeRO-1'"),
        ({"dp": "8"}, "column dp: '8' is not what 8 GPUs leave"),
        ({"iter_time_s": "-3"}, "column iter_time_s: '-3'"),
        ({"iter_time_s": "0"}, "column iter_time_s: '0' must be above zero"),
        ({"iter_time_s": ""}, "is empty, as are"),
        ({"gpu": "a quantum computer"}, "column gpu"),
        ({"precision": "int3"}, "column precision: 'int3' is none of"),
        ({"fsdp_or_zero": "sideways"}, "column fsdp_or_zero"),
        ({"model": "Someone's 9B"}, "column model"),
        ({"model": "Someone's 9B", "hidden": "4096.5", "layers": "32", "heads": "32"}, "column hidden: '4096.5' must be a whole"),
        ({"micro_batch": "1.5"}, "must be a whole number"),
    ],
)
def test_a_cell_that_is_not_understood_is_refused_by_row_and_column(tmp_path, cells, says):
    with pytest.raises(TenfoldError, match="could be read") as caught:
        validate(layouts=table(tmp_path / "own.csv", cells))
    assert says in str(caught.value)
    found = validate(layouts=table(tmp_path / "own.csv", {}, cells))  # beside a good row it is named, and the other is read
    assert len(found.rows) == 1 and found.unread[0].line == 3
    assert any("row 3" in remark for remark in found.remarks)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([c for c in COLUMNS if c not in ("source", "notes", "stack", "params", "model", "gpu")]), st.text(max_size=8)
)
def test_no_cell_ends_in_a_trace(tmp_path_factory, column, text):
    path = tmp_path_factory.mktemp("tables") / "own.csv"
    try:
        rows, unread = read_layouts(table(path, {column: text.replace("\0", "")}))
    except (TenfoldError, UnicodeEncodeError):
        return
    assert len(rows) + len(unread) == 1


@pytest.mark.parametrize(("delimiter", "mark"), [(",", "\ufeff"), (";", ""), (";", "\ufeff")])
def test_a_mark_or_semicolons_change_nothing(tmp_path, delimiter, mark):
    plain, other = table(tmp_path / "a.csv", {}), table(tmp_path / "b.csv", {}, delimiter=delimiter, mark=mark)
    assert read_layouts(plain) == read_layouts(other)


def test_an_empty_table_says_so(tmp_path):
    with pytest.raises(TenfoldError, match="but no row"):
        validate(layouts=table(tmp_path / "own.csv"))


def test_words_in_a_note_change_nothing(tmp_path):
    read = [read_layouts(table(tmp_path / "own.csv", {"notes": note}))[0][0] for note in ("", "FSDP off", "torchtitan eager")]
    assert read[0] == read[1] == read[2]


def test_software_is_said_by_column_or_option_or_named_as_assumed(tmp_path):
    own = table(tmp_path / "own.csv", {})
    assert not read_layouts(own)[0][0].stack_said
    assert any("--stack" in remark for remark in validate(layouts=own).remarks)
    assert read_layouts(own, "torchtitan-2024.12")[0][0].machine.stack.name == "torchtitan-2024.12"
    said = table(tmp_path / "said.csv", {"stack": "llm-foundry-2023"})
    assert read_layouts(said, "torchtitan-2024.12")[0][0].machine.stack.name == "llm-foundry-2023"


def test_a_version_is_the_newest_known_before_it():
    assert stack("megatron-bridge-26.02").name == "megatron-bridge-25"
    assert stack("megatron-lm-2022").name == "megatron-lm-2021"
    assert stack("megatron-lm-2019").name == "megatron-lm-2021"  # none is older
    with pytest.raises(TenfoldError, match="did you mean"):
        stack("megatronn-lm-2024")


def test_an_empty_cell_is_what_the_software_does(tmp_path):
    """No virtual stages are plain 1F1B, whatever the plan would choose; MaxText takes all rows of a chip at once."""
    pipeline = table(tmp_path / "own.csv", {"n_gpus": "64", "pp": "8", "cp": "1", "stack": "nemo-25.04"})
    assert read_layouts(pipeline)[0][0].layout.schedule == "1f1b"
    tpu = table(tmp_path / "tpu.csv", {"gpu": "TPU v6e", "tp": "", "pp": "", "cp": "", "micro_batch": "", "stack": "maxtext-2025"})
    (row,) = read_layouts(tpu)[0]
    assert (row.layout.dp_shard, row.layout.micro_batch, row.layout.activation_checkpointing) == (8, 16, "full")


def test_errors_by_row_for_scripts(tmp_path, capsys):
    tenfold(["plan", "validate", "--layouts", str(table(tmp_path / "own.csv", {}, {"tp": "3"})), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["rows"]] == ["Llama 3.1 8B"] and "error_pct" in found["rows"][0]
    assert found["unread"][0]["column"] == "tp"


def test_experts_are_whole_where_tensor_ranks_cannot_cut_them(tmp_path):
    """EP 32 on 32 ranks of a stage, tensor ranks among them, leaves no two that could share an expert."""
    cells = {"model": "Qwen3_235B_a22B", "n_gpus": "256", "global_batch_seqs": "2048", "tp": "2", "pp": "8", "cp": "1", "ep": "32"}
    rows, _ = read_layouts(table(tmp_path / "own.csv", cells))
    assert rows[0].layout.etp == 1
    assert rows[0].layout.ep * rows[0].layout.etp <= rows[0].layout.dp * rows[0].layout.tp


def test_published_rows_in_4_bits_are_read_and_planned():
    rows = [row for row in read_layouts()[0] if row.precision == "fp4"]
    assert {row.machine.accelerator.key for row in rows} == {"gb200", "gb300"}
    errors = [step_time(row.spec, row.layout, row.machine).total_s / row.step_s - 1 for row in rows]
    assert sum(map(abs, errors)) / len(errors) < 0.12
    for row in rows:
        others = [row.layout.replace(dtype=dtype) for dtype in ("fp8", "bf16")]
        times = [step_time(row.spec, layout, row.machine).total_s for layout in (row.layout, *others)]
        held = [memory(row.spec, layout, row.machine).activations_gib for layout in (row.layout, *others)]
        assert times == sorted(times) and held == sorted(held)


@pytest.mark.parametrize(("part", "software"), [("h100", "megatron-bridge-26.04"), ("gb300", "tenfold")])
def test_4_bits_are_planned_only_where_chip_and_software_have_them(part, software):
    shape = resolve(Request(after="llama-3.1-8b", times=1.0))
    with pytest.raises(TenfoldError, match="fp4|4 bits"):
        make_plan(shape, 64, machine(part, software), StepRequest(dtype="fp4"))


def test_llm_foundrys_rows_ran_so_they_fit():
    rows = [row for row in read_layouts()[0] if "llm-foundry" in row.source]
    assert len(rows) > 200
    assert [row for row in rows if not memory(row.spec, row.layout, row.machine).fits] == []


@given(st.integers(1, 64), st.sampled_from(["llm-foundry-2023", "megatron-lm-2021"]))
def test_activations_of_gpt_are_those_of_korthikanti(heads, software):
    """arXiv 2205.05198, section 4: 34 bytes a token and width less two masks of dropout, scores of attention beside them."""
    spec = gpt("own", 96 * heads, 1, heads, 50_257, 2048)
    kept, _ = activation_bytes(spec, Layout(), False, stack(software))
    assert kept == pytest.approx(32 * spec.dim, rel=0.01)
