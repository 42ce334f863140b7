"""Descriptors that are closed while others stand for the same: what an epoll instance goes on to report, and how the
last one is gone."""

import os
import select
import socket
import time


def make(kind):
    """Who writes, and who reads."""
    if kind == "pipe":
        return os.pipe()[::-1]
    if kind == "pair":
        return [one.detach() for one in socket.socketpair()]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        one = socket.create_connection(server.getsockname())
        return one.detach(), server.accept()[0].detach()


def in_this_process(kind, edge):
    writer, reader = make(kind)
    instance = select.epoll()
    instance.register(reader, select.EPOLLIN | edge)
    told = []

    def look(seconds=0.1):
        told.append(sorted(events for _, events in instance.poll(seconds)))

    def send(data):
        os.write(writer, data)
        # Of two that come at once, one may be told a moment later.
        time.sleep(0.001)
        look()

    send(b"1")
    os.read(reader, 10)
    look(0)
    copy = os.dup(reader)
    os.close(reader)
    send(b"2")
    os.read(copy, 10)
    look(0)
    # Another has its number.
    other, its_writer = os.pipe()
    instance.register(other, select.EPOLLIN)
    os.write(its_writer, b"q")
    send(b"3")
    os.read(other, 10)
    os.read(copy, 10)
    # In the ring when it is closed.
    last = os.dup(copy)
    instance.register(copy, select.EPOLLIN)
    os.write(writer, b"4")
    os.close(copy)
    told.append(bool(instance.poll(0.1)))
    os.read(last, 10)
    os.close(last)
    look()
    for fd in writer, other, its_writer:
        os.close(fd)
    print(kind, edge != 0, told)


def in_a_child(kind):
    writer, reader = make(kind)
    instance = select.epoll()
    instance.register(reader, select.EPOLLIN)
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(wait, 1)
        os._exit(len(os.read(reader, 10)))
    os.close(reader)
    os.write(writer, b"abc")
    told = [len(instance.poll(0.1)) for _ in range(2)]
    os.close(go)
    told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    time.sleep(0.05)
    told.append(len(instance.poll(0.05)))
    os.close(writer)
    print(kind, told)


for kind in "pair", "tcp", "pipe":
    for edge in 0, select.EPOLLET:
        in_this_process(kind, edge)
    in_a_child(kind)
