"""Sockets that a child gets by posix_spawn before they are bound or connected: it binds or connects them, and reads."""

import os
import signal
import socket
import sys
import time

HERE = ("127.0.0.1", 0)


def child(way, fd):
    """What the child does with what it was given, as its parent asks."""
    one = socket.socket(fileno=fd)
    # Its mode is its parent's, too.
    signal.alarm(5)
    print("up", flush=True)
    port = int(sys.stdin.readline())
    if way == "bind":
        one.bind(HERE)
    if way == "connect":
        one.connect(("127.0.0.1", port))
        one.sendall(b"child")
    print("ready", flush=True)
    # Until what it is to hear has been sent.
    time.sleep(0.05)
    heard = b""
    while len(heard) < 1000:
        heard += one.recv(2000)
    print("heard", len(heard), flush=True)


def spawn(way, fd):
    """A child of vfork, and pipes to it and from it."""
    (their_in, to), (at, their_out) = os.pipe(), os.pipe()
    os.set_inheritable(fd, True)
    actions = [(os.POSIX_SPAWN_DUP2, their_in, 0), (os.POSIX_SPAWN_DUP2, their_out, 1)]
    argv = [sys.executable, __file__, way, str(fd)]
    pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)
    os.close(their_in)
    os.close(their_out)
    at = open(at)
    assert at.readline() == "up\n"
    return pid, open(to, "w", buffering=1), at


def datagrams(way):
    """The child reads what it, or its parent, has bound or connected since."""
    one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    other.bind(HERE)
    pid, to, at = spawn(way, one.fileno())
    if way == "parent":
        one.bind(HERE)
    print(other.getsockname()[1], file=to)
    assert at.readline() == "ready\n"
    # Were it carried, all would go by the region from here on.
    for _ in range(5):
        one.sendto(b"x", other.getsockname())
        other.sendto(b"x", one.getsockname())
        assert one.recv(9, socket.MSG_DONTWAIT) == b"x"
        try:
            print("more", one.recv(9, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
    for _ in range(100):
        other.sendto(b"x" * 10, one.getsockname())
    print("datagrams", way, at.readline().strip(), os.waitpid(pid, 0)[1])


def connections(way):
    one, listener = socket.socket(), socket.socket()
    listener.bind(HERE)
    listener.listen()
    pid, to, at = spawn(way, one.fileno())
    if way == "parent":
        one.connect(listener.getsockname())
    print(listener.getsockname()[1], file=to)
    other, _ = listener.accept()
    if way == "connect":
        assert other.recv(5) == b"child"
    assert at.readline() == "ready\n"
    for _ in range(100):
        other.sendall(b"x" * 10)
    print("connections", way, at.readline().strip(), os.waitpid(pid, 0)[1])


if len(sys.argv) > 1:
    child(sys.argv[1], int(sys.argv[2]))
else:
    for _ in range(5):
        for which in "bind", "parent", "connect":
            datagrams(which)
        for which in "parent", "connect":
            connections(which)
