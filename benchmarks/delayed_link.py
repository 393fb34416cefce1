"""Two network namespaces with a link between them that takes a given time each way. Linux, root, and iproute2's `ip`.

    with DelayedLink(200e-6) as link:
        subprocess.run([*link.prefix(0), "ping", "-c", "3", link.address(1)])

Where the kernel has `netem`, a pair of virtual Ethernet devices is delayed by `tc`. Where it has not, each namespace
has a TUN device, and a process hands every packet on from one to the other when its time has come:

    python benchmarks/delayed_link.py NAMESPACE NAMESPACE SECONDS

That process takes some time of a processor for every packet, at a delay of 0 too.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE = "tdlink"
_NAMESPACES = ("truedepth-a", "truedepth-b")
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_MTU = 60_000  # few packets: what counts is the delay, not the relay's work
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET, _PR_SET_TIMERSLACK = 0x40000000, 29


@dataclass
class DelayedLink:
    """The link; a context manager. `how` says which way delays it."""

    seconds: float
    how: str = field(init=False, default="")
    _relay: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __enter__(self) -> DelayedLink:
        if os.geteuid() != 0:
            raise SystemExit("making network namespaces needs root")
        try:
            for name in _NAMESPACES:
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            self.how = "netem" if self._netem() else "relay"
            if self.how == "relay":
                self._start_relay()
            for name, address in zip(_NAMESPACES, _ADDRESSES, strict=True):
                _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
                _run("ip", "-n", name, "link", "set", DEVICE, "up", "mtu", str(_MTU))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if self._relay is not None:
            self._relay.terminate()
            self._relay.wait()
        for name in _NAMESPACES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def prefix(self, side: int) -> list[str]:
        """What makes a command run on one side, 0 or 1."""
        return ["ip", "netns", "exec", _NAMESPACES[side]]

    def address(self, side: int) -> str:
        """The address of one side."""
        return _ADDRESSES[side]

    def round_trip(self) -> float:
        """Seconds of the median of 50 pings."""
        command = [*self.prefix(0), sys.executable, "-c", _PING, self.address(0), self.address(1)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def _netem(self) -> bool:
        """Whether a delayed pair of virtual Ethernet devices could be made."""
        a, b = _NAMESPACES
        _run("ip", "-n", a, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", b)
        for name in _NAMESPACES:
            delay = ["tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", "netem", "delay", f"{self.seconds}s"]
            if subprocess.run(delay, capture_output=True, check=False).returncode:
                _run("ip", "-n", a, "link", "del", DEVICE)
                return False
        return True

    def _start_relay(self) -> None:
        command = [sys.executable, __file__, *_NAMESPACES, str(self.seconds)]
        self._relay = subprocess.Popen(command, stdout=subprocess.PIPE)
        if self._relay.stdout is None or self._relay.stdout.readline() != b"ready\n":
            raise SystemExit("the relay did not start; are there TUN devices (/dev/net/tun)?")


# The kernel of the other side answers; raw sockets are root's, and `ping` may not be installed.
_PING = """
import socket, statistics, struct, sys, time
own = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
own.settimeout(2)
seconds = []
for number in range(60):
    head = struct.pack("!BBHHH", 8, 0, 0, 77, number)
    total = sum(struct.unpack("!4H", head))
    total = (total & 0xFFFF) + (total >> 16)
    packet = struct.pack("!BBHHH", 8, 0, 0xFFFF & ~total, 77, number)
    start = time.perf_counter()
    own.sendto(packet, (sys.argv[2], 0))
    while True:
        answer = own.recv(1500)[20:]
        if answer[0] == 0 and answer[4:8] == packet[4:8]:
            break
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[10:]))
"""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def _tun(namespace: str) -> int:
    """A TUN device in a namespace, as a file; leaves this process in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open("rb") as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def relay(a: str, b: str, seconds: float) -> None:
    """Hand packets on between two namespaces, each `seconds` after it came. Never returns."""
    # Sleep to the microsecond: by default Linux may wake a process 50 microseconds late.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    ends = {_tun(a): deque[tuple[float, bytes]](), _tun(b): deque[tuple[float, bytes]]()}
    first, second = ends
    other = {first: second, second: first}
    print("ready", flush=True)
    while True:
        due = [waiting[0][0] for waiting in ends.values() if waiting]
        timeout = max(0.0, min(due) - time.perf_counter()) if due else None
        readable, _, _ = select.select(list(ends), [], [], timeout)
        for end in readable:
            arrived = time.perf_counter()
            ends[end].append((arrived + seconds, os.read(end, 65_536)))
        now = time.perf_counter()
        for end, waiting in ends.items():
            while waiting and waiting[0][0] <= now:
                packet = waiting.popleft()[1]
                with suppress(OSError):  # the other end may not be up yet: the packet is lost, as on any link
                    os.write(other[end], packet)


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], float(sys.argv[3]))
