"""A local Ray cluster that stands in for a mixed fleet: one real raylet per node, with declared accelerators.

Every raylet is a `ray start --block` in a session of its own, labelled with its node type and told by `COE_CPU_SHARE`
how fast its accelerators are. The first node of the fleet is the head and must be CPU-only. What was started is written
to ``cluster.json`` in the state folder, and every process carries the cluster's id in its environment, so that `down`
ends exactly these processes, workers and proxies included, even where their parents have died. Ray takes the machine's
network address, not the loopback: run it where the network is trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coe.errors import InvalidInput, Problem, Unavailable
from coe.files import read, write
from coe.serving.labels import CPU_SHARE_ENV, SERVE_ENV, accelerator_resource, node_cpus, node_labels
from coe.types import Fleet, FleetNode, Noun, Offer

STATE_DIR = Path(".coe")
STATE_FILE = "cluster.json"
CLUSTER_ENV = "COE_CLUSTER_ID"
"""Marks every process of a cluster with the cluster's id."""

START_TIMEOUT_S = 120.0
LEADER_TIMEOUT_S = 10.0
TERM_TIMEOUT_S = 3.0
KILL_TIMEOUT_S = 5.0
OBJECT_STORE_BYTES = 80 * 2**20
"""Per node, near Ray's minimum: batches travel by value, so next to nothing is stored."""

ONE_THREAD_ENV = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Pacing counts the CPU time of one thread, so numerical libraries must not start others."""

_TEMPORARY_PREFIX = "coe-ray-"

Elsewhere = Callable[[str, list[str]], list[str]]
"""A node's type and the command that starts it here -> the command that starts it in another place."""


class NodeProcess(Noun):
    """One `ray start`: the leader of a session that holds everything it started."""

    node_type: str
    pid: int
    started: str
    """When the process started, as the kernel tells it; so that a reused pid is never taken for ours."""


class ClusterState(Noun):
    """A running local cluster, as written to the state folder."""

    kind: Literal["cluster"] = "cluster"
    version: Literal[1] = 1
    name: str
    cluster_id: str
    address: str
    """What `RAY_ADDRESS` must say; empty while the head is starting."""
    temp_dir: str
    """Sockets and logs of Ray, one folder per node."""
    nodes: tuple[NodeProcess, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """The leaders, head first."""
        return tuple(n.pid for n in self.nodes)


def up(
    fleet: Fleet,
    state_dir: Path = STATE_DIR,
    *,
    progress: Callable[[int, int], None] | None = None,
    settings: Mapping[str, str] = SERVE_ENV,
    elsewhere: Elsewhere | None = None,
) -> ClusterState:
    """Start every node of `fleet` and return when all have joined; `progress` gets (nodes joined, nodes).

    `settings` is what Serve is told by environment variables; `elsewhere` makes of a node's type and command the command that
    starts it in another place, like a network namespace. It must remain one process.

    Raises `InvalidInput` for a fleet that cannot be started and `Unavailable` where a cluster of this state folder is
    up already or a node does not start. Nothing is left running then.
    """
    _check(fleet)
    path = state_dir / STATE_FILE
    running = current(state_dir)
    if running is not None:
        raise Unavailable(
            f"the fleet '{running.name}' is already up at {running.address or 'an address not yet known'} ({path}); "
            "end it first: coe cluster down"
        )
    down(state_dir)  # clears what a dead cluster left
    state_dir.mkdir(parents=True, exist_ok=True)
    state = ClusterState(
        name=fleet.name, cluster_id=uuid.uuid4().hex, address="", temp_dir=tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX)
    )
    write(path, state)
    try:
        return _start(fleet, state, path, progress or _ignore, settings, elsewhere or _here)
    except BaseException:
        down(state_dir)
        raise


def _ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


def _here(node_type: str, command: list[str]) -> list[str]:
    """A node that is started where we are."""
    del node_type
    return command


def _check(fleet: Fleet) -> None:
    """Refuse what Ray would refuse later, or worse, take differently."""
    head = fleet.nodes[0].offer
    if head.accelerators_per_node:
        rule = "the first node is the head of the cluster and must be CPU-only (accelerators_per_node: 0)"
        raise InvalidInput(Problem("fleet: nodes[0]", rule, f"{head.accelerators_per_node} {head.accelerator}"))
    if fleet.nodes[0].count != 1:
        rule = "the first node is the head of the cluster, of which there is one"
        remedy = "list further nodes of this kind under a node_type of their own"
        raise InvalidInput(Problem("fleet: nodes[0].count", rule, str(fleet.nodes[0].count), remedy))
    for node in fleet.nodes:
        node_labels(node.offer)


def _start(
    fleet: Fleet,
    state: ClusterState,
    path: Path,
    progress: Callable[[int, int], None],
    settings: Mapping[str, str],
    elsewhere: Elsewhere,
) -> ClusterState:
    """Head first, since the others need its address; then all others at once."""
    nodes = [node for node in fleet.nodes for _ in range(node.count)]
    temporary = Path(state.temp_dir)
    environment = _environment(state.cluster_id, settings)
    state = _spawned(state, path, nodes[0], 0, environment, _head_arguments(), elsewhere)
    address = _wait_for(state.nodes[0], _folder(temporary, 0))
    state = state.model_copy(update={"address": address})
    write(path, state)
    progress(1, len(nodes))
    joining = ["--address", address, "--include-log-monitor=false"]
    for number, node in enumerate(nodes[1:], start=1):
        state = _spawned(state, path, node, number, environment, joining, elsewhere)
    for number, process in enumerate(state.nodes[1:], start=1):
        _wait_for(process, _folder(temporary, number))
        progress(number + 1, len(nodes))
    return state


def _head_arguments() -> list[str]:
    client_port = str(free_port())
    return ["--head", "--port", "0", "--include-dashboard=false", "--ray-client-server-port", client_port]


def _folder(temporary: Path, number: int) -> Path:
    """The folder of one node. Nodes that start at once must not share one: Ray would give two the same socket."""
    return temporary / str(number)


def _environment(cluster_id: str, settings: Mapping[str, str]) -> dict[str, str]:
    """What every node of a cluster has in its environment."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", CPU_SHARE_ENV)}
    return {
        **kept,
        **settings,
        **ONE_THREAD_ENV,
        CLUSTER_ENV: cluster_id,
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *filter(None, [kept.get("PYTHONPATH")])]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # Ray refuses a second node on macOS without it
        # two clusters on one machine would otherwise want the same ports, and share that of the fallback proxy, so that what
        # came while a router was busy with a change of plan could be answered by another cluster's service
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


def _spawned(
    state: ClusterState,
    path: Path,
    node: FleetNode,
    number: int,
    environment: Mapping[str, str],
    arguments: list[str],
    elsewhere: Elsewhere,
) -> ClusterState:
    """The state with one more process, written before anything else can fail."""
    folder = _folder(Path(state.temp_dir), number)
    folder.mkdir()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--temp-dir", str(folder), *arguments, *_node_arguments(node.offer)]
    with open(folder / "start.log", "wb") as log:
        child = subprocess.Popen(
            elsewhere(node.offer.node_type, command),
            env={**environment, CPU_SHARE_ENV: repr(node.cpu_share)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[child.pid] = child
    process = NodeProcess(node_type=node.offer.node_type, pid=child.pid, started=_started(child.pid))
    state = state.model_copy(update={"nodes": (*state.nodes, process)})
    write(path, state)
    return state


def _node_arguments(offer: Offer) -> list[str]:
    """What the node has, as its offer says."""
    gpus = offer.accelerators_per_node
    resources = {accelerator_resource(offer.accelerator): gpus} if gpus else {}
    labels = ",".join(f"{key}={value}" for key, value in node_labels(offer).items())
    return [
        *("--num-cpus", str(node_cpus(offer))),
        *("--num-gpus", str(gpus)),
        *("--resources", json.dumps(resources)),
        *("--labels", labels),
        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
    ]


def _wait_for(process: NodeProcess, folder: Path) -> str:
    """The cluster's address, which a node writes into its folder once it has joined."""
    written = folder / "ray_current_cluster"
    child = _children[process.pid]
    due = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < due:
        if written.exists() and (address := written.read_text().strip()):
            return address
        if child.poll() is not None:
            raise Unavailable(f"node {process.node_type} did not start:\n{_last_lines(folder / 'start.log')}")
        time.sleep(0.05)
    raise Unavailable(
        f"node {process.node_type} has not joined after {START_TIMEOUT_S:.0f} s:\n{_last_lines(folder / 'start.log')}"
    )


def _last_lines(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


# --- Ending -----------------------------------------------------------------------------------------------------------


def current(state_dir: Path = STATE_DIR) -> ClusterState | None:
    """The cluster that this state folder started, if any of its nodes is still running."""
    state = _state(state_dir)
    if state is None or not _sessions(state):
        return None
    return state


def load_state(state_dir: Path = STATE_DIR) -> ClusterState:
    """The running cluster of this state folder; `Unavailable` where none is up."""
    state = current(state_dir)
    if state is None:
        raise Unavailable(f"no fleet of {state_dir} is up; start one: coe cluster up FLEET")
    return state


def _state(state_dir: Path) -> ClusterState | None:
    path = state_dir / STATE_FILE
    return read(path, ClusterState) if path.exists() else None


def down(state_dir: Path = STATE_DIR) -> int:
    """End the cluster of this state folder and return how many of its nodes were still running; 0 without one.

    Ray is asked to end first, then what it left behind, and what is left of that is killed. Raises `Unavailable` where
    even that does not help, and keeps the state file.
    """
    state = _state(state_dir)
    if state is None:
        return 0
    sessions = _sessions(state)
    for session in reversed(sessions):  # the head last; Ray ends most of what it started
        _signal(session, signal.SIGTERM)
    _wait_until_gone(lambda: _sessions(state), state, LEADER_TIMEOUT_S)
    for number, timeout_s in ((signal.SIGTERM, TERM_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
        for pid in processes(state, sessions):  # Serve's proxy, and whatever has lost its parent
            _signal(pid, number)
        if _wait_until_gone(lambda: processes(state, sessions), state, timeout_s):
            break
    else:
        left = ", ".join(map(str, processes(state, sessions)))
        raise Unavailable(f"these processes of the fleet '{state.name}' do not end: {left}")
    if Path(state.temp_dir).name.startswith(_TEMPORARY_PREFIX):
        shutil.rmtree(state.temp_dir, ignore_errors=True)
    (state_dir / STATE_FILE).unlink(missing_ok=True)
    return len(sessions)


def _sessions(state: ClusterState) -> list[int]:
    """Sessions of the nodes whose leader is alive and really ours; head first."""
    alive = {p.pid: p for p in _all_processes()}
    return [n.pid for n in state.nodes if n.pid in alive and alive[n.pid].started == n.started]


def processes(state: ClusterState, sessions: list[int] | None = None) -> list[int]:
    """Every living process of a cluster: in a session of its nodes, or marked with its id (where Linux tells)."""
    ours = set(_sessions(state) if sessions is None else sessions)
    mark = f"{CLUSTER_ENV}={state.cluster_id}".encode()
    return [p.pid for p in _all_processes() if p.session in ours or mark in _marks(p.pid)]


def _marks(pid: int) -> list[bytes]:
    """The environment that a process was started with, where the system shows it."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _wait_until_gone(remaining: Callable[[], list[int]], state: ClusterState, timeout_s: float) -> bool:
    due = time.monotonic() + timeout_s
    while True:
        _reap(state)
        if not remaining():
            return True
        if time.monotonic() > due:
            return False
        time.sleep(0.1)


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Nodes that this very process started: they must be waited for, or they stay as zombies."""


def _reap(state: ClusterState) -> None:
    for pid in state.pids:
        child = _children.get(pid)
        if child is not None and child.poll() is not None:
            del _children[pid]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


# --- What the system knows about processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Process:
    """A process that is not a zombie."""

    pid: int
    session: int
    started: str


def _all_processes() -> Iterator[_Process]:
    if not Path("/proc/self/stat").exists():
        yield from _processes_by_ps()
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := _process(int(entry))) is not None:
            yield process


def _process(pid: int) -> _Process | None:
    """From /proc/pid/stat (proc(5)): state, session and start time follow the name, which may hold anything."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else _Process(pid, int(fields[3]), fields[19])


def _processes_by_ps() -> Iterator[_Process]:
    """Where there is no /proc (macOS)."""
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,stat=,lstart="], capture_output=True, text=True, check=True, env=environment
    )
    for line in listed.stdout.splitlines():
        pid, status, started = line.split(None, 2)
        with contextlib.suppress(OSError):
            if not status.startswith("Z"):
                yield _Process(int(pid), os.getsid(int(pid)), started.strip())


def _started(pid: int) -> str:
    """Start time of a child that was just started; empty where it is gone already."""
    return next((p.started for p in _all_processes() if p.pid == pid), "")
