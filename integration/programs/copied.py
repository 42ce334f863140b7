"""Sockets that are copied, inherited or passed before they are connected: who has the copy uses it."""

import array
import os
import socket
import sys
import tempfile
import threading


def serve(listener):
    connection, _ = listener.accept()
    heard = b""
    while len(heard) < 10 and (more := connection.recv(100)):
        heard += more
    connection.sendall(b"heard " + heard)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
    connection.close()


def talk(copy):
    copy.settimeout(5)
    copy.sendall(b"56789")
    heard = b""
    while more := copy.recv(100):
        heard += more
    return heard


def pass_on(to, one):
    fds = array.array("i", [one.fileno()])
    to.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def take(at):
    _, control, _, _ = at.recvmsg(1, 100)
    return socket.socket(fileno=array.array("i", control[0][2])[0])


def by_copy(one, connect):
    copy = one.dup()
    connect()
    print("copy", talk(copy))
    copy.close()


def by_child(one, connect):
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(wait, 1)
        print("child", talk(one), flush=True)
        os._exit(0)
    connect()
    os.write(go, b"x")
    os.waitpid(child, 0)


def by_message(one, connect):
    to, at = socket.socketpair()
    pass_on(to, one)
    copy = take(at)
    connect()
    print("message", talk(copy))
    copy.close()


def by_parent(one, connect):
    """The child connects, and the parent has what it connected."""
    if (child := os.fork()) == 0:
        connect()
        os._exit(0)
    os.waitpid(child, 0)
    print("parent", talk(one))


folder = tempfile.mkdtemp()
for family, name in [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, folder + "/at")]:
    for way in by_copy, by_child, by_message, by_parent:
        listener = socket.socket(family)
        listener.bind(name)
        listener.listen()
        server = threading.Thread(target=serve, args=[listener])
        server.start()
        with socket.socket(family) as one:

            def connect():
                one.connect(listener.getsockname())
                one.sendall(b"01234")

            way(one, connect)
        server.join()
        listener.close()
        sys.stdout.flush()
        if family == socket.AF_UNIX:
            os.unlink(name)
os.rmdir(folder)
