"""A real Slurm on this machine: its controller, and nodes with GPUs that are empty files.

python tests/slurm_cluster.py start FOLDER --nodes 2      # then: export SLURM_CONF=FOLDER/slurm.conf
python tests/slurm_cluster.py stop FOLDER --nodes 2
"""

import argparse
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NOTHING = subprocess.DEVNULL
CONFIG = """ClusterName=tenfold
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
KillWait=2
MinJobAge=300
{nodes}
{partitions}
"""


def missing():
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons want to be started by root"


class SlurmCluster:
    """Started on entering; afterwards all its daemons and jobs are gone. Each partition has its own nodes."""

    def __init__(self, folder, partitions=None, gpus=8):
        partitions = partitions or {"train": 4}
        self.folder, self.gpus = Path(folder), gpus
        self.nodes = [f"n{i + 1}" for i in range(sum(partitions.values()))]
        left = iter(self.nodes)
        self.partitions = {name: [next(left) for _ in range(count)] for name, count in partitions.items()}

    def __enter__(self):
        for name in ("munge", "devices", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        for i in range(self.gpus):
            (self.folder / "devices" / f"gpu{i}").touch()
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(1 + len(self.nodes))]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p} CPUs=8 RealMemory=4000 Gres=gpu:{self.gpus} Feature=fast"
            for n, p in zip(self.nodes, ports[1:], strict=True)
        )
        partitions = "\n".join(
            f"PartitionName={name} Nodes={','.join(nodes)} Default={'NO' if i else 'YES'} MaxTime=INFINITE State=UP"
            for i, (name, nodes) in enumerate(self.partitions.items())
        )
        config = self.folder / "slurm.conf"
        config.write_text(CONFIG.format(folder=self.folder, host=host, ports=ports, nodes=nodes, partitions=partitions))
        (self.folder / "gres.conf").write_text(
            f"NodeName=n[1-{len(self.nodes)}] Name=gpu File={self.folder}/devices/gpu[0-{self.gpus - 1}]\n"
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        os.environ["SLURM_CONF"] = str(config)
        self._start(
            "munged", "--force", *(f"--{n}-file={munge / n}" for n in ("key", "pid", "log", "seed")), f"--socket={munge}/socket"
        )
        self._start("slurmctld", "-c", "-f", config)
        for node in self.nodes:
            self.start(node)
        self.wait(lambda: set(self.ask("sinfo", "--noheader", "--format=%T").split()) == {"idle"}, "the nodes are idle")
        return self

    def __exit__(self, *error):
        with suppress(subprocess.CalledProcessError):
            self.ask("scancel", "--signal=KILL", "--user=root")
            self.ask("scancel", "--user=root")
            self.wait(lambda: not self.ask("squeue", "--noheader", "--states=running,completing"), "the jobs are gone")
        for node in self.nodes:
            self._end(self.folder / f"slurmd-{node}.pid")
        self._end(self.folder / "slurmctld.pid")
        self._end(self.folder / "munge" / "pid")
        del os.environ["SLURM_CONF"]

    def ask(self, *command):
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def wait(self, true, what, timeout_s=60):
        end = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < end, f"after {timeout_s} s it is not so that {what}"
            time.sleep(0.1)

    def start(self, node):
        self._start("slurmd", "-f", self.folder / "slurm.conf", "-N", node)

    def kill(self, node):
        """Let a node die with all that runs on it, and Slurm find out."""
        daemon = psutil.Process(int((self.folder / f"slurmd-{node}.pid").read_text()))
        for process in [daemon, *self._on(node)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def node_that_listens(self, port):
        found = next(one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.laddr.port == port)
        return psutil.Process(found.pid).environ()["SLURMD_NODENAME"]

    def _on(self, node):
        """The processes of a node's tasks, which have its name in their environment, and the managers that started them."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                found = process.environ()
                if found.get("SLURMD_NODENAME") == node and found.get("SLURM_CONF", "").startswith(str(self.folder)):
                    parent = process.parent()
                    yield from [process, *([parent] if parent and "slurmstepd" in parent.name() else [])]

    def _start(self, *command):
        subprocess.run(list(map(str, command)), check=True, stdin=NOTHING, stdout=NOTHING, stderr=NOTHING, timeout=60)

    def _end(self, pid_file):
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(pid_file.read_text()))
            process.terminate()
            process.wait(10)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    cluster = SlurmCluster(folder, {"train": asked.nodes})
    if asked.action == "start":
        if reason := missing():
            parser.error(reason)
        cluster.__enter__()
    else:
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        cluster.__exit__()


if __name__ == "__main__":
    main()
