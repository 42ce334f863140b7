# Kinds of servers and clients of Python's own, each with a client that knows what it has to get back.
import array
import asyncio
import hashlib
import os
import random
import select
import socket
import socketserver
import subprocess
import threading

random.seed(1)


def check(address, count, family=socket.AF_INET):
    """Send pieces of many lengths to an echoing server, and compare what comes."""
    one = socket.socket(family)
    one.connect(address)
    sent, got = hashlib.md5(), hashlib.md5()
    for i in range(count):
        piece = random.randbytes(1 + i * 37 % 9000)
        sent.update(piece)
        one.sendall(piece)
        left = len(piece)
        while left:
            part = one.recv(65536)
            assert part, "an end too early"
            got.update(part)
            left -= len(part)
    one.shutdown(socket.SHUT_WR)
    assert one.recv(1) == b""
    assert sent.digest() == got.digest()
    one.close()


def several(address, threads, count, family=socket.AF_INET):
    all = [threading.Thread(target=check, args=(address, count, family)) for _ in range(threads)]
    [one.start() for one in all]
    [one.join() for one in all]


def listening(family=socket.AF_INET, address=("127.0.0.1", 0)):
    server = socket.socket(family)
    server.bind(address)
    server.listen()
    return server


def program_with_the_connection_as_its_input():
    server = listening()
    client = threading.Thread(target=check, args=(server.getsockname(), 300))
    client.start()
    one, _ = server.accept()
    subprocess.run(["cat"], stdin=one, stdout=one, check=True)
    one.close()
    client.join()


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while piece := self.request.recv(70000):
            self.request.sendall(piece)


class Forking(socketserver.ForkingMixIn, socketserver.TCPServer):
    pass


class Threading(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


class Forking6(Forking):
    address_family = socket.AF_INET6


def servers_of_the_library():
    for kind, address in [(Forking, "127.0.0.1"), (Threading, "127.0.0.1"), (Forking6, "::1")]:
        server = kind((address, 0), Echo)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        several(server.server_address, 6, 100, kind.address_family)
        server.shutdown()
        server.server_close()
        print(kind.__name__, "served")


def selecting():
    """A server of one thread, by each way to wait."""
    for how in ["select", "poll", "epoll", "edges"]:
        server = listening(socket.AF_UNIX, "\0talk-" + how + str(os.getpid()))
        clients = threading.Thread(target=several, args=(server.getsockname(), 4, 60, socket.AF_UNIX))
        clients.start()
        open, ended = {server.fileno(): server}, 0
        poll = {"select": None, "poll": select.poll}.get(how, select.epoll)
        poll = poll and poll()
        poll and poll.register(server, select.POLLIN)
        server.setblocking(False)
        while ended < 4:
            if poll:
                ready = [fd for fd, _ in poll.poll()]
            else:
                ready = select.select(list(open), [], [])[0]
            for fd in ready:
                if fd == server.fileno():
                    one, _ = server.accept()
                    open[one.fileno()] = one
                    one.setblocking(how != "edges")
                    flags = select.EPOLLIN | (select.EPOLLET if how == "edges" else 0)
                    poll and poll.register(one, flags)
                    continue
                while True:
                    try:
                        piece = open[fd].recv(70000)
                    except BlockingIOError:
                        break
                    if not piece:
                        poll and poll.unregister(fd)
                        open.pop(fd).close()
                        ended += 1
                        break
                    open[fd].setblocking(True)
                    open[fd].sendall(piece)
                    open[fd].setblocking(how != "edges")
                    if how != "edges":
                        break
        clients.join()
        print(how, "served")


def passed_on():
    """A connection that is given to another process by a message."""
    left, right = socket.socketpair()
    server = listening()
    child = os.fork()
    if child == 0:
        _, fds, _, _ = socket.recv_fds(right, 1, 1)
        one = socket.socket(fileno=fds[0])
        while piece := one.recv(70000):
            one.sendall(piece)
        os._exit(0)
    client = threading.Thread(target=check, args=(server.getsockname(), 200))
    client.start()
    one, _ = server.accept()
    socket.send_fds(left, [b"x"], [one.fileno()])
    one.close()
    client.join()
    assert os.waitpid(child, 0)[1] == 0


def with_time_limits():
    server = listening(socket.AF_UNIX, "\0limits" + str(os.getpid()))
    one = socket.socket(socket.AF_UNIX)
    one.connect(server.getsockname())
    two, _ = server.accept()
    for i in range(5):
        one.send(b"x" * (i + 1))
        two.recv(100)
        two.send(b"y")
        one.recv(1)
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, array.array("l", [0, 50000]).tobytes())
    try:
        two.recv(1)
    except BlockingIOError:
        print("a limit of the socket's")
    one.settimeout(0.05)
    try:
        one.recv(1)
    except TimeoutError:
        print("a limit of the program's")
    large = random.randbytes(3_000_000)
    one.settimeout(None)
    sender = threading.Thread(target=one.sendall, args=(large,))
    sender.start()
    assert b"".join(take(two, len(large))) == large
    sender.join()


def take(one, count):
    while count:
        piece = one.recv(1 << 20)
        count -= len(piece)
        yield piece


def nobody_reads():
    """What a socket takes that nobody reads from is what the kernel takes, and more."""
    server = listening()
    one = socket.create_connection(server.getsockname())
    two, _ = server.accept()
    for _ in range(4):
        one.send(b"x")
        two.recv(1)
        two.send(b"y")
        one.recv(1)
    one.setblocking(False)
    sent = 0
    try:
        while True:
            sent += one.send(bytes(65536))
    except BlockingIOError:
        pass
    assert select.select([], [one], [], 0)[1] == []
    got = sum(len(piece) for piece in take(two, sent))
    assert got == sent and select.select([], [one], [], 5)[1] == [one]


def late_for_epoll():
    """Bytes have come when the socket is added to an epoll instance, be it the first or the twentieth."""
    all = [select.epoll() for _ in range(20)]
    for epoll in all:
        for flags in [0, select.EPOLLET, select.EPOLLONESHOT]:
            server = listening()
            one = socket.create_connection(server.getsockname())
            two, _ = server.accept()
            one.send(b"some bytes")
            epoll.register(two, select.EPOLLIN | flags)
            assert epoll.poll(5) == [(two.fileno(), select.EPOLLIN)]
            again = [] if flags else [(two.fileno(), select.EPOLLIN)]
            assert epoll.poll(0) == again
            assert two.recv(5) == b"some "
            assert epoll.poll(0) == again
            assert two.recv(50) == b"bytes"
            assert epoll.poll(0) == []
            one.send(b"more")
            assert epoll.poll(0.2 if flags == select.EPOLLONESHOT else 5) == (
                [] if flags == select.EPOLLONESHOT else [(two.fileno(), select.EPOLLIN)]
            )
            epoll.modify(two, select.EPOLLIN)
            assert epoll.poll(5) == [(two.fileno(), select.EPOLLIN)]
            assert two.recv(50) == b"more"
            two.close()
            assert epoll.poll(0) == []
    for how in ["poll", "select", "epoll"]:
        server = listening()
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
        inner = select.epoll()
        inner.register(two, select.EPOLLIN)
        assert inner.poll(0) == []
        one.send(b"some bytes")
        outer = select.poll() if how == "poll" else select.epoll()
        outer.register(inner, select.POLLIN)
        if how == "select":
            assert select.select([inner], [], [], 5)[0] == [inner]
        else:
            assert outer.poll(5000 if how == "poll" else 5) == [(inner.fileno(), select.POLLIN)]
        assert inner.poll(0) == [(two.fileno(), select.EPOLLIN)]
        assert two.recv(50) == b"some bytes"
        assert select.select([inner], [], [], 0)[0] == [] == outer.poll(0)
        one.send(b"more")
        assert outer.poll(5000 if how == "poll" else 5) == [(inner.fileno(), select.POLLIN)]
    print("none too late")


async def asynchronous():
    async def serve(reader, writer):
        while piece := await reader.read(70000):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def ask(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(40):
            piece = random.randbytes(3000 * i + 1)
            writer.write(piece)
            assert await reader.readexactly(len(piece)) == piece
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.gather(*[ask(port) for _ in range(20)])


program_with_the_connection_as_its_input()
servers_of_the_library()
selecting()
passed_on()
with_time_limits()
nobody_reads()
late_for_epoll()
asyncio.run(asynchronous())
print("all of it")
