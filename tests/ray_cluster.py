"""A real Ray on this machine: a head with its job server, and nodes whose GPUs are only numbers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import requests


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class RayCluster:
    """Started on entering, with its address in RAY_ADDRESS; afterwards all its processes are gone. Each node has a core and a
    resource by which it is known, and the head has `head_cpus`."""

    def __init__(self, nodes=(), resource="a", gpus=4, head_cpus=2):
        self._home, self._port = Path(f"/tmp/tenfold-ray-{os.getpid()}"), free_port()  # short: Ray makes sockets in it
        self._nodes, self._resource, self._gpus, self._head_cpus = nodes, resource, gpus, head_cpus
        self._processes, self._before = {}, {name: os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_AUTH_MODE")}

    def __enter__(self):
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self):
        self._home.mkdir()
        board = free_port()
        os.environ |= {"RAY_ADDRESS": f"http://127.0.0.1:{board}", "RAY_AUTH_MODE": "disabled"}
        self._start(
            "head", "--head", f"--num-cpus={self._head_cpus}", "--num-gpus=0", f"--port={self._port}", f"--dashboard-port={board}",
            "--dashboard-host=127.0.0.1", "--include-dashboard=true", f"--temp-dir={self._home}",
        )  # fmt: skip
        for _ in range(600):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", board)) == 0:
                    break
            assert self._processes["head"].poll() is None, (self._home / "head.log").read_text()
            time.sleep(0.5)
        for name in self._nodes:  # one after another: nodes that join one host at once take each other's ports
            self.start(name)

    def __exit__(self, *error):
        for name, value in self._before.items():
            os.environ.pop(name)
            os.environ |= {name: value} if value is not None else {}
        for process in reversed(self._processes.values()):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        shutil.rmtree(self._home, ignore_errors=True)

    def start(self, node):
        """Let a node join, and Ray find out."""
        self._start(
            node, f"--address=127.0.0.1:{self._port}", f"--num-cpus={self._gpus}", f"--num-gpus={self._gpus}",
            f"--resources={json.dumps({self._resource: 1})}",
        )  # fmt: skip
        self._settle()

    def _settle(self):
        end = time.monotonic() + 300
        while self._alive() != len(self._processes):
            assert time.monotonic() < end, "Ray has not found out which nodes are alive"
            time.sleep(0.5)

    def kill(self, node):
        """Let a node die with all that runs on it, and Ray find out."""
        process = self._processes.pop(node)
        for one in [process, *self._on(node)]:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(one.pid).kill()
        process.wait()
        self._settle()

    def _alive(self):
        """How many nodes Ray says are alive; none where it does not answer yet."""
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException

        with suppress(RayStateApiException, requests.RequestException):
            return sum(node.state == "ALIVE" for node in list_nodes(address=os.environ["RAY_ADDRESS"]))
        return 0

    def _on(self, node):
        """The processes of a node, which have its name in their environment."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                found = process.environ()
                if found.get("RAY_NODE") == node and found.get("HOME") == str(self._home):
                    yield process

    def _start(self, name, *options):
        environment = os.environ | {"HOME": str(self._home), "RAY_NODE": name, "RAY_USAGE_STATS_ENABLED": "0"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        del environment["RAY_ADDRESS"]
        words = [*options, "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--block", "--disable-usage-stats"]
        with (self._home / f"{name}.log").open("w") as said:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
            self._processes[name] = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
