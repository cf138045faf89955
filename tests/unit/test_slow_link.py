"""The link of `benchmarks.slow_link`, whose delay can be changed: what it does to packets, and to sockets where it may be had."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import chaos
from benchmarks import slow_link as slow_link_module
from benchmarks.chaos_world import LINKED
from benchmarks.slow_link import Pace, Queue, SlowLink, slow_link, why_not

REASON = why_not()
ECHO = """
import socket
tcp, udp = socket.create_server(("", 5201)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 5201))
print("listening", flush=True)
data, peer = udp.recvfrom(1000)
udp.sendto(data, peer)
connection, _ = tcp.accept()
while data := connection.recv(65536):
    connection.sendall(data)
"""


def left(queue: Queue, now_s: float) -> list[bytes]:
    return list(queue.due(now_s))


def test_a_packet_leaves_after_the_delay_and_not_before() -> None:
    queue = Queue(0)
    queue.put(b"one", 10.0, Pace(delay_s=0.5))
    assert (queue.next_s, left(queue, 10.49), left(queue, 10.5), queue.next_s) == (10.5, [], [b"one"], None)


def test_packets_keep_their_order_when_the_link_is_fast_again_and_when_it_jitters() -> None:
    queue = Queue(0)
    queue.put(b"slow", 0.0, Pace(delay_s=2.0))
    queue.put(b"fast", 0.1, Pace())
    assert (left(queue, 1.9), left(queue, 2.0)) == ([], [b"slow", b"fast"])
    for number in range(50):
        queue.put(bytes([number]), 3.0, Pace(jitter_s=1.0))
    assert (queue.next_s or 0.0) > 3.0
    assert left(queue, 4.0) == [bytes([number]) for number in range(50)]


def test_the_rate_is_that_of_the_bits() -> None:
    queue, pace = Queue(0), Pace(delay_s=1.0, bits_per_s=8000.0)
    for _ in range(3):
        queue.put(bytes(500), 0.0, pace)  # half a second each
    assert [len(left(queue, at)) for at in (1.4, 1.5, 2.0, 2.4, 2.5)] == [0, 1, 1, 0, 1]
    queue.put(bytes(500), 10.0, pace)
    assert queue.next_s == 11.5


def test_a_cut_link_loses_what_comes_and_delivers_what_is_on_its_way() -> None:
    queue = Queue(0)
    queue.put(b"before", 0.0, Pace(delay_s=1.0))
    queue.put(b"lost", 0.5, Pace(is_cut=True))
    assert left(queue, 9.0) == [b"before"]


def test_rows_that_need_a_link_say_that_they_were_not_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_link_module, "why_not", lambda: "it takes root to make network namespaces")
    args = argparse.Namespace(only="is cut", rate=30.0, seconds=14.0, queries=None)
    (row,) = chaos._rows(LINKED, chaos.BLOWS[LINKED], args)
    assert (row["blow"], row["failed"]) == ("the link to a node is cut for 8 s", "not run")
    assert row["why"] == "it takes root to make network namespaces"


@contextmanager
def echoed() -> Iterator[SlowLink]:
    """A link with somebody at the far end who says everything again."""
    with slow_link(delay_s=0.02) as link:
        process = subprocess.Popen([*link.prefix, sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield link
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def received(tcp: socket.socket, size: int) -> bytes:
    """The next so many bytes."""
    data = b""
    while len(data) < size and (more := tcp.recv(size - len(data))):
        data += more
    return data


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_sockets_see_the_delay_and_what_they_carry_is_whole() -> None:
    with echoed() as link:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(10)
            began_s = time.monotonic()
            udp.sendto(b"ping", (link.far_ip, 5201))
            assert udp.recv(1000) == b"ping"
            assert 0.04 <= time.monotonic() - began_s < 0.7
        with socket.create_connection((link.far_ip, 5201), timeout=10) as tcp:
            for delay_s in (0.02, 0.15, 0.0):
                link.set(delay_s=delay_s)
                tcp.sendall(b"settle")
                received(tcp, 6)
                began_s = time.monotonic()
                tcp.sendall(b"ping")
                assert received(tcp, 4) == b"ping"
                assert 2 * delay_s <= time.monotonic() - began_s < 2 * delay_s + 0.7
            data = bytes(range(256)) * 400  # in many packets each way
            tcp.sendall(data)
            assert received(tcp, len(data)) == data

            link.set(is_cut=True)
            tcp.sendall(b"ping")
            tcp.settimeout(0.3)
            with pytest.raises(TimeoutError):
                tcp.recv(4)
            link.set()
            tcp.settimeout(10)
            assert received(tcp, 4) == b"ping"  # sent again by TCP


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_nothing_stays_behind_also_where_the_benchmark_breaks_off() -> None:
    seen = []

    def break_off() -> None:
        with slow_link() as link:
            seen.append((link.prefix[1].removeprefix("--net="), link.near_ip))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    ((namespace, near_ip),) = seen
    assert not Path(namespace).exists()
    assert near_ip not in subprocess.run(["ip", "-4", "addr"], check=True, capture_output=True, text=True).stdout
