"""The same policy on a simulated fleet and on a real Slurm: equal decisions for the same events, over kills of the controller."""

import pytest
from live_worlds import Controller, drive, setup_of, simulated
from slurm_cluster import SlurmCluster, missing

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


def compare(tmp_path, pools, last_s, kills):
    """Returns how many decisions were the same."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    decisions, ended = simulated(setup_of(folder, pools))
    with SlurmCluster(tmp_path / "cluster", pools, gpus=4) as cluster:
        controller = Controller(folder, "slurm", pools)
        try:
            return drive(controller, folder, decisions, ended, cluster, last_s, kills)
        finally:
            controller.close()


def test_a_run_that_grows_and_one_that_comes_are_decided_as_in_a_simulation(tmp_path):
    assert compare(tmp_path, {"a": 2, "b": 3}, 700, kills={4}) == 8


@pytest.mark.slow
def test_two_pools_of_32_gpus_decide_as_a_simulation_does(tmp_path):
    """Runs come, grow, shrink, save and end, services borrow and give back, two nodes die; kills come in the middle of turns."""
    assert compare(tmp_path, {"a": 4, "b": 4}, 8640, kills={3, 11, 14, 17, 24}) == 71
