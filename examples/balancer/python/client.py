"""A client: twenty flows of each kind; prints which backends have answered how many.

    python3 client.py ADDRESS PORT NAME...    once these are all there
    python3 client.py ADDRESS PORT keep       one connection, for four seconds
"""
import collections
import socket
import sys
import time

SERVER = (sys.argv[1], int(sys.argv[2]))


def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.2)
        one.connect(SERVER)
        for _ in range(100):
            try:
                one.send(b"hello")
                name, text = one.recv(100).decode().split(": ")
                assert text == "hello"
                return name
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.05)
    raise SystemExit("nobody answers")


def stream():
    with socket.create_connection(SERVER, timeout=20) as one:
        lines = one.makefile("rw")
        names = set()
        for turn in range(10):
            lines.write(f"line {turn} {'x' * 3000}\n")
            lines.flush()
            name, text = lines.readline().split(": ")
            assert text == f"line {turn} {'x' * 3000}\n"
            names.add(name)
        assert len(names) == 1, "a connection has one backend"
        return names.pop()


def keep():
    with socket.create_connection(SERVER, timeout=20) as one:
        lines = one.makefile("rw")
        names = set()
        for turn in range(40):
            lines.write(f"{turn}\n")
            lines.flush()
            name, text = lines.readline().split(": ")
            assert text == f"{turn}\n"
            names.add(name)
            time.sleep(0.1)
        print(f"40 lines, {len(names)} backend")


def main(names):
    if names == ["keep"]:
        return keep()
    # Until all of it is up: whoever is asked about first has all to choose from then.
    seen = set()
    while not seen >= set(names):
        seen.add(datagram())
    for kind in datagram, stream:
        served = collections.Counter(kind() for _ in range(20))
        print(f"{kind.__name__}s:", ", ".join(f"{name} {served[name]}" for name in sorted(served)))


main(sys.argv[3:])
