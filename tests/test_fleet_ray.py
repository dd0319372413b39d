"""The same policy on a simulated fleet and on a real Ray: equal decisions for the same events, over a kill of the controller."""

import pytest
from live_worlds import Controller, Replay, setup_of
from ray_cluster import RayCluster

pytest.importorskip("ray")
pytest.importorskip("aiohttp_cors", reason="Ray's job server is missing: pip install 'tenfold[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NODES = ("w1", "w2", "w3")


def test_a_pool_of_ray_is_decided_as_in_a_simulation(tmp_path):
    folder, pools = tmp_path / "fleet", {"a": len(NODES)}
    folder.mkdir()
    with RayCluster(NODES) as cluster, Controller(folder, "ray", pools) as controller:
        assert Replay(controller, folder, cluster, setup_of(folder, pools)).run(last_s=8640, kills={4, 10, 20}) == 36
