"""What serving a ranker takes: by hand, in proportion, in shards, and by what was measured."""

import json
from dataclasses import replace

import pytest

from tenfold.cli.commands import run
from tenfold.plan.serving.rank import GIB, REFERENCE, ServeRequest, history_flops, keep_costs, plan_rank
from tenfold.spec.errors import TenfoldError

COSTS = replace(
    REFERENCE, machine="a test", query_core_s=2e-3, history_core_s_per_flop=1e-10, item_core_s_per_byte=1e-10, search_core_s=1e-3,
    index_bytes_per_item=100.0, event_core_s=1e-3, list_bytes=1000.0, event_bytes=100.0, process_bytes=GIB,
)  # fmt: skip


def test_a_small_load_is_what_one_reckons_by_hand():
    asked = ServeRequest(
        queries_per_s=100, items=1000, item_width=32, events_per_query=2, utilization=0.5, mean_share=1, kept_days=10
    )
    plan = plan_rank(asked, COSTS)
    assert plan.embedding_bytes == 1000 * 32 * 4 and plan.index_bytes == 0 and plan.shards == plan.hosts == 1
    core_s = 2e-3 + history_flops(32, 2, 200) * 1e-10 + 128_000 * 1e-10 + 2e-3
    assert plan.cores == pytest.approx(100 * core_s / 0.5) and plan.cores_per_1000_queries == pytest.approx(10 * plan.cores)
    assert plan.log_bytes_per_day == pytest.approx(100 * 86400 * 1200) and plan.stored_tb == pytest.approx(
        plan.log_bytes_per_day / 1e11
    )
    assert plan.memory_gib_per_host == pytest.approx(1 + 128_000 / GIB)


def test_a_history_s_products_are_those_of_its_matrices_and_attention():
    width, layers, history = 48, 3, 70
    matrices = 4 * width**2 + 8 * width**2  # attention, and a feed-forward of four times the width
    pairs = history * history / 2  # causal: scores and sums, two products of a width each
    assert history_flops(width, layers, history) == pytest.approx(layers * (2 * matrices * history + 4 * width * pairs))


def test_twice_the_load_takes_twice_the_cores_and_a_table_too_large_for_a_host_is_cut():
    one, two = (plan_rank(ServeRequest(queries_per_s=q, items=5_000_000), COSTS) for q in (5000, 10_000))
    assert two.cores == pytest.approx(2 * one.cores) and two.stored_tb == pytest.approx(2 * one.stored_tb)
    assert one.core_ms["retrieval"] == pytest.approx(1.0) and one.index_bytes == 5e8  # the index, not every vector
    cut = plan_rank(ServeRequest(items=100_000_000, item_width=256, host_gib=64), COSTS)
    assert cut.shards == 2 and cut.memory_gib_per_host <= 64 and cut.hosts % 2 == 0
    assert plan_rank(ServeRequest(cached_share=1), COSTS).core_ms["history"] == 0


def test_a_host_without_room_for_a_server_is_refused():
    with pytest.raises(TenfoldError, match="raise --host-gib"):
        plan_rank(ServeRequest(host_gib=REFERENCE.process_bytes / 2**30), REFERENCE)


def test_the_plan_takes_what_was_measured_in_the_home(tmp_path, capsys):
    asked = ["plan", "--serve", "rank", "--items", "1000", "--home", str(tmp_path)]
    run([*asked, "--json"])
    before = json.loads(capsys.readouterr().out)
    assert before["costs_from"] == REFERENCE.machine and before["request"]["items"] == 1000
    keep_costs(COSTS, tmp_path)
    run([*asked, "--out", str(tmp_path / "plan")])
    assert "measured on a test" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["costs_from"] == "a test"
    (tmp_path / "rank_serving.json").write_text('{"version": 0}')
    with pytest.raises(TenfoldError, match="rank measure"):
        run(asked)
