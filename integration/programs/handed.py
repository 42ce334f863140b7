"""Sockets that are handed to a process that may know nothing of rings, while they are used: what it reads is all that
was sent and not read yet, in order."""

import os
import socket
import sys


def make(kind):
    if kind == "pair":
        return socket.socketpair()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        return socket.create_connection(server.getsockname()), server.accept()[0]


def hand_over(one):
    way = socket.socket(socket.AF_UNIX)
    way.connect(sys.argv[1])
    socket.send_fds(way, [b"x"], [one.fileno()])
    return way


for kind in "pair", "tcp":
    for before in b"", b"before ", b"b" * 20000:
        for keeps in False, True:
            one, other = make(kind)
            for _ in range(50):
                one.send(b"ping")
                other.recv(4)
                other.send(b"pong")
                one.recv(4)
            one.send(before + b"12")
            other.recv(1)
            way = hand_over(other)
            if not keeps:
                other.close()
            for number in range(5):
                one.send(b"after%d " % number)
            one.shutdown(socket.SHUT_WR)
            heard = b""
            while piece := way.recv(100000):
                heard += piece
            print(kind, len(before), keeps, len(heard), heard.replace(b"b" * 100, b""))
