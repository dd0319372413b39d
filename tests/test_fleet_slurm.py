"""The same policy on a simulated fleet and on a real Slurm: equal decisions for the same events, over kills of the controller."""

import pytest
from live_worlds import Controller, Replay, setup_of
from slurm_cluster import SlurmCluster, missing

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


def compare(tmp_path, pools, last_s, kills):
    """Returns how many decisions were the same."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    with SlurmCluster(tmp_path / "cluster", pools, gpus=4) as cluster, Controller(folder, "slurm", pools) as controller:
        return Replay(controller, folder, cluster, setup_of(folder, pools)).run(last_s, kills)


def test_a_run_that_comes_and_one_that_grows_are_decided_as_in_a_simulation(tmp_path):
    assert compare(tmp_path, {"a": 2, "b": 3}, last_s=700, kills={4}) == 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_pools_of_32_gpus_are_decided_as_in_a_simulation(tmp_path):
    """Runs come, grow, shrink, save and end, services borrow and give back, two nodes die; kills come in the middle of turns."""
    assert compare(tmp_path, {"a": 4, "b": 4}, last_s=8640, kills={3, 11, 14, 17, 24}) == 71
