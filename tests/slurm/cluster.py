"""A Slurm cluster of one node on this machine, in a folder of its own.

``munged``, ``slurmctld`` and ``slurmd`` of Debian's packages ``slurm-wlm`` and ``munge`` listen on
free ports of localhost. Nothing of them is left when the cluster is stopped.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
KILL_WAIT = 15
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2,preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=1
KillWait={kill_wait}
SlurmdTimeout=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
"""  # noqa: E501


def why_not() -> str:
    """Why no cluster can be started here; empty where one can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    return ""


def free_ports(count: int) -> list[int]:
    """Ports of localhost that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Cluster:
    """One node with ``cpus`` pretended CPUs, in ``folder``."""

    def __init__(self, folder: Path, cpus: int = 6) -> None:
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        ports = free_ports(2)
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                host=self.host, controller_port=ports[0], node_port=ports[1],
                user=getpass.getuser(), folder=folder, cpus=cpus, kill_wait=KILL_WAIT,
            )
        )  # fmt: skip
        self.environ = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Start the daemons and wait for the node.

        Raises:
            OSError: the node does not come up.
        """
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._daemon(
            "munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        self._daemon("slurmctld")
        self._daemon("slurmd")
        deadline = time.monotonic() + 60
        while "idle" not in self.ask("sinfo", "--noheader", "--format=%T", check=False):
            if time.monotonic() > deadline:
                log = (self.folder / "slurmctld.log").read_text()[-2000:]
                raise OSError(f"the node does not come up: {log}")
            time.sleep(0.2)

    def _daemon(self, *command: str) -> None:
        """Start a daemon that puts itself into the background."""
        with open(self.folder / f"{command[0]}.out", "wb") as out:
            done = subprocess.run(
                command, env={**os.environ, **self.environ}, stdout=out, stderr=out, timeout=60
            )
        if done.returncode:
            text = (self.folder / f"{command[0]}.out").read_text()
            raise OSError(f"{command[0]} does not start: {text[-500:]}")

    def ask(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command and return its output."""
        done = subprocess.run(
            command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def steps(self) -> set[int]:
        """The processes that run the steps of jobs on the node."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):  # it has ended
                if entry.read_text().strip() == "slurmstepd":
                    found.add(int(entry.parent.name))
        return found

    def stop(self) -> None:
        """Cancel everything and end the daemons."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ask("scancel", "--user", getpass.getuser(), check=False)
            deadline = time.monotonic() + KILL_WAIT + 10
            while self.ask("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in ("slurmd", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                _end(pid)


def _end(pid: int) -> None:
    """Send SIGTERM, and SIGKILL if the process does not end."""
    os.kill(pid, 15)
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, 9)
