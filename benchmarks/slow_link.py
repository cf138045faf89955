"""A network link whose delay and rate can be changed while it carries: to a network namespace of its own, on one machine.

    with slow_link(delay_s=0.0002) as link:
        subprocess.run([*link.prefix, "ray", "start", "--address", ..., "--node-ip-address", link.far_ip])
        link.set(delay_s=2.0)

Kernels without `netem` can do this, too: two TUN devices, one on either side, and a process between them that lets every packet
leave after its delay, in the order in which it came. Linux, as root, with `ip`, `unshare` and `nsenter`. Nothing stays behind:
that process also holds the namespace, and ends with whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
NEAR, FAR = 0, 1
MTU_BYTES = 1500
QUEUE_PACKETS = 10_000
"""That a device holds for the relay; more are lost, as on any link."""
AT_ONCE = 64
"""Packets taken from one side before the other has its turn."""
START_S, END_S = 10.0, 5.0


class NoLink(Exception):
    """Why there can be no link here."""


@dataclass(frozen=True)
class Pace:
    """How a link carries, each way."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much is added, uniformly; packets keep their order all the same."""
    bits_per_s: float | None = None
    """None for as fast as can be."""
    is_cut: bool = False
    """Every packet is lost."""


class Queue:
    """Packets on their way in one direction."""

    def __init__(self, seed: int) -> None:
        self._packets: deque[tuple[float, bytes]] = deque()
        self._free_s = self._last_s = 0.0
        self._random = random.Random(seed)

    def put(self, packet: bytes, now_s: float, pace: Pace) -> None:
        """A packet enters the link."""
        if pace.is_cut:
            return
        self._free_s = max(now_s, self._free_s)
        if pace.bits_per_s is not None:
            self._free_s += 8 * len(packet) / pace.bits_per_s
        due_s = self._free_s + pace.delay_s + pace.jitter_s * self._random.random()
        self._last_s = max(due_s, self._last_s)
        self._packets.append((self._last_s, packet))

    @property
    def next_s(self) -> float | None:
        """When the first packet leaves; None without one."""
        return self._packets[0][0] if self._packets else None

    def due(self, now_s: float) -> Iterator[bytes]:
        """Packets that leave now, which are then no more on their way."""
        while self._packets and self._packets[0][0] <= now_s:
            yield self._packets.popleft()[1]


class SlowLink:
    """A namespace and the link to it."""

    def __init__(self, relay: subprocess.Popen[str], near_ip: str, far_ip: str) -> None:
        self.near_ip, self.far_ip = near_ip, far_ip
        self._relay = relay

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that is to run at the far end."""
        return ["nsenter", f"--net=/proc/{self._relay.pid}/ns/net"]

    def set(
        self, *, delay_s: float = 0.0, jitter_s: float = 0.0, bits_per_s: float | None = None, is_cut: bool = False
    ) -> None:
        """Carry so from now on; what is on its way already is not overtaken."""
        pace = Pace(delay_s, jitter_s, bits_per_s, is_cut)
        assert self._relay.stdin is not None
        self._relay.stdin.write(json.dumps(asdict(pace)) + "\n")
        self._relay.stdin.flush()
        _expect(self._relay, "paced")


def why_not() -> str | None:
    """What is missing here for such a link; None where nothing is."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "it takes root to make network namespaces"
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"there is no {' and no '.join(missing)} (iproute2, util-linux)"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"there is no {TUN}, or it is not for us"
    return None


@contextmanager
def slow_link(*, delay_s: float = 0.0, jitter_s: float = 0.0, bits_per_s: float | None = None) -> Iterator[SlowLink]:
    """A namespace at the far end of a link, both gone afterwards. Processes that were started there are the caller's to end.

    Raises `NoLink` with the reason where there can be none.
    """
    if (reason := why_not()) is not None:
        raise NoLink(reason)
    near_ip, far_ip = _addresses()
    name = f"coe{os.getpid() % 100_000}x{random.randrange(16**3):03x}"  # an interface has at most 15 characters
    command = ["unshare", "--net", sys.executable, str(Path(__file__).resolve()), name, near_ip, far_ip]
    near = None
    try:
        near = _tun(name)
        _ip("addr", "add", near_ip, "peer", far_ip, "dev", name)
        _ip("link", "set", name, "mtu", str(MTU_BYTES), "txqueuelen", str(QUEUE_PACKETS), "up")
        relay = subprocess.Popen(
            [*command, str(near)],
            pass_fds=(near,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for who asked; the relay ends when its input does
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise NoLink(f"the system refuses: {str(said).strip()}") from None
    finally:
        if near is not None:
            os.close(near)
    try:
        _expect(relay, "up")
        link = SlowLink(relay, near_ip, far_ip)
        link.set(delay_s=delay_s, jitter_s=jitter_s, bits_per_s=bits_per_s)
        yield link
    finally:
        assert relay.stdin is not None
        assert relay.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            relay.stdin.close()
        try:
            relay.wait(END_S)
        except subprocess.TimeoutExpired:
            relay.kill()
            relay.wait()
        relay.stdout.close()


def _addresses() -> tuple[str, str]:
    """Two neighbours of the range for benchmarks (RFC 2544) that nobody here uses."""
    used = _ip("-4", "addr", "show") + _ip("-4", "route", "show")
    while True:
        net = f"198.{random.choice((18, 19))}.{random.randrange(256)}."
        if net not in used:
            return f"{net}1", f"{net}2"


def _expect(relay: subprocess.Popen[str], word: str) -> None:
    """Wait for what the relay says next."""
    assert relay.stdout is not None
    if not select.select([relay.stdout], [], [], START_S)[0]:
        raise NoLink(f"the relay has not said '{word}' after {START_S:.0f} s")
    said = relay.stdout.readline().strip()
    if said != word:
        raise NoLink(f"the relay ended: {said or relay.wait(END_S)}")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _tun(name: str) -> int:
    """A new TUN device: each read is a packet that was routed to it, each write one that comes out of it. Without a header that
    says otherwise, the kernel leaves no checksum and no segmenting to the reader."""
    import fcntl

    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(file)
        raise
    return file


# --- The relay: a process of its own, in the far namespace, with the near device in its hands -----------------------------------


def _relay(name: str, near_ip: str, far_ip: str, near: int) -> None:
    """Carry packets until the input ends; a line of it is how to carry from now on."""
    try:
        far = _tun(name)
        _ip("link", "set", "lo", "up")
        _ip("addr", "add", far_ip, "peer", near_ip, "dev", name)
        _ip("link", "set", name, "mtu", str(MTU_BYTES), "txqueuelen", str(QUEUE_PACKETS), "up")
        _ip("route", "add", "default", "via", near_ip)
    except (OSError, subprocess.CalledProcessError) as error:
        print(str(getattr(error, "stderr", None) or error).strip(), flush=True)
        return
    print("up", flush=True)
    ends = (near, far)
    ways = (Queue(0), Queue(1))  # towards the far end, towards the near one
    pace, commands = Pace(), sys.stdin.fileno()
    while True:
        nexts = [due for way in ways if (due := way.next_s) is not None]
        timeout = max(0.0, min(nexts) - time.monotonic()) if nexts else None
        ready, _, _ = select.select([*ends, commands], [], [], timeout)
        if commands in ready:
            line = sys.stdin.readline()
            if not line:
                return
            pace = Pace(**json.loads(line))
            print("paced", flush=True)
        for end, way in zip(ends, ways, strict=True):
            if end in ready:
                _take(end, way, pace)
        now = time.monotonic()
        for end, way in zip(reversed(ends), ways, strict=True):
            for packet in way.due(now):
                with contextlib.suppress(OSError):  # a full device loses packets
                    os.write(end, packet)


def _take(end: int, way: Queue, pace: Pace) -> None:
    """Packets that wait at one end enter the link."""
    for _ in range(AT_ONCE):
        try:
            packet = os.read(end, MTU_BYTES + 100)
        except BlockingIOError:
            return
        way.put(packet, time.monotonic(), pace)


if __name__ == "__main__":
    _relay(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
