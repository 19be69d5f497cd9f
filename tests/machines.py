"""Machines of a network, each of them a network namespace of the kernel.

A machine here is a cable to a switch, and what was started inside. Nothing of it can be seen from
the outside, and all of it goes with the last process in it: there is nothing to be cleaned up, even
if the tests are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"

# Reserved for measuring networks by RFC 2544: no real network has it.
_NETWORK = "198.18.0"


class Network:
    """A switch, and the machine that it is plugged into.

    That is where the calling thread lives from now on, and what it starts: processes and threads.
    """

    address = f"{_NETWORK}.1"

    def __init__(self) -> None:
        self._outside = os.open(_HERE, os.O_RDONLY)
        self._machines: list[Machine] = []
        try:
            _unshare()
            _ip("link set lo up")
            _ip("link add switch type bridge")
            _ip(f"address add {self.address}/24 dev switch")
            _ip("link set switch up")
        except BaseException:
            self.close()
            raise

    def add_machine(self) -> Machine:
        machine = Machine(len(self._machines) + 2)
        self._machines.append(machine)
        return machine

    def close(self) -> None:
        """Leave the network; once its processes have ended, it is gone."""
        _enter(self._outside)
        os.close(self._outside)
        for machine in self._machines:
            machine.close()


class Machine:
    """A machine that is plugged into the switch of the network that the caller is in."""

    def __init__(self, number: int) -> None:
        self.address = f"{_NETWORK}.{number}"
        self._cable = f"cable{number}"
        switch = os.open(_HERE, os.O_RDONLY)
        try:
            _unshare()
            self._namespace = os.open(_HERE, os.O_RDONLY)
            _enter(switch)
        finally:
            os.close(switch)
        there = f"/proc/{os.getpid()}/fd/{self._namespace}"
        _ip(f"link add {self._cable} type veth peer name eth0 netns {there}")
        _ip(f"link set {self._cable} master switch up")
        with self.inside():
            _ip("link set lo up")
            _ip(f"address add {self.address}/24 dev eth0")
            _ip("link set eth0 up")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What the calling thread starts in the block runs on this machine."""
        outside = os.open(_HERE, os.O_RDONLY)
        _enter(self._namespace)
        try:
            yield
        finally:
            _enter(outside)
            os.close(outside)

    def unplug(self) -> None:
        """Pull the cable: nobody is told, and what is sent gets lost."""
        _ip(f"link set {self._cable} down")

    def plug_in(self) -> None:
        _ip(f"link set {self._cable} up")

    def runs(self, pid: int) -> bool:
        """Whether a process is on this machine."""
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.fstat(self._namespace).st_ino

    def repeats_itself(self) -> bool:
        """Whether it has sent something that nobody has acknowledged."""
        with self.inside(), open("/proc/thread-self/net/tcp", encoding="ascii") as file:
            connections = [line.split() for line in file][1:]
        return any(int(fields[4].partition(":")[0], 16) > 0 for fields in connections)

    def close(self) -> None:
        os.close(self._namespace)


def why_not() -> str | None:
    """Say why there can be no such networks here; ``None`` if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "there is no ip command (iproute2)"
    outside = os.open(_HERE, os.O_RDONLY)
    try:
        _unshare()
    except OSError as error:
        return f"network namespaces are not permitted: {error.strerror}"
    else:
        _enter(outside)
    finally:
        os.close(outside)
    try:
        network = Network()
    except subprocess.CalledProcessError as error:
        return f"networks cannot be set up: {error.stderr.decode().strip()}"
    network.close()
    return None


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, stderr=subprocess.PIPE)


def _unshare() -> None:
    """Move the calling thread, and no other, to a network namespace of its own."""
    _check(_libc().unshare(_CLONE_NEWNET))


def _enter(namespace: int) -> None:
    _check(_libc().setns(namespace, _CLONE_NEWNET))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
