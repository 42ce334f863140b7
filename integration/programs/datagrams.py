# Datagram sockets in every way that Python has: servers of its own, threads, children, programs that inherit them.
import asyncio
import os
import select
import selectors
import signal
import socket
import socketserver
import subprocess
import sys
import threading

UDP, INET, INET6 = socket.SOCK_DGRAM, socket.AF_INET, socket.AF_INET6
LOCAL = ("127.0.0.1", 0)


def made(family=INET, address=LOCAL):
    one = socket.socket(family, UDP)
    one.bind(address)
    one.settimeout(20)
    return one


def ask(one, to, count, length):
    for index in range(count):
        text = b"%d " % index + bytes([index % 256]) * (index * 37 % length)
        one.sendto(text, to)
        got, sender = one.recvfrom(70000)
        assert got == text[::-1] and sender[:2] == to[:2], (index, sender)


class Reverse(socketserver.BaseRequestHandler):
    def handle(self):
        text, one = self.request
        one.sendto(text[::-1], self.client_address)


def servers():
    for kind in socketserver.UDPServer, socketserver.ThreadingUDPServer:
        kind.max_packet_size = 70000
        with kind(LOCAL, Reverse) as server:
            thread = threading.Thread(daemon=True, target=server.serve_forever, args=(0.05,))
            thread.start()
            for _ in range(3):
                with made() as one:
                    ask(one, server.server_address, 400, 3000)
            server.shutdown()
            thread.join()


class Protocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, sender):
        self.transport.sendto(data[::-1], sender)


class Client(asyncio.DatagramProtocol):
    def __init__(self):
        self.got = asyncio.Queue()

    def datagram_received(self, data, sender):
        self.got.put_nowait(data)


async def with_asyncio():
    loop = asyncio.get_running_loop()
    for address in LOCAL, ("::1", 0):
        server, _ = await loop.create_datagram_endpoint(Protocol, local_addr=address)
        to = server.get_extra_info("sockname")

        async def one_client():
            transport, client = await loop.create_datagram_endpoint(Client, remote_addr=to[:2])
            for index in range(300):
                text = b"%d" % index * (index % 200)
                transport.sendto(text)
                if text:
                    assert await asyncio.wait_for(client.got.get(), 20) == text[::-1]
            transport.close()

        await asyncio.gather(*(one_client() for _ in range(5)))
        server.close()


def children():
    server = made()
    pids = []
    for which in range(3):
        pid = os.fork()
        if pid == 0:
            with made() as one:
                ask(one, server.getsockname(), 500, 500)
            os._exit(0)
        pids.append(pid)
    # Both answer.
    helper = os.fork()
    server.settimeout(0.1 if helper else 20)
    while pids:
        try:
            text, sender = server.recvfrom(2000)
        except TimeoutError:
            pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG) == (0, 0)]
            continue
        if text == b"end":
            os._exit(0)
        server.sendto(text[::-1], sender)
    server.sendto(b"end", server.getsockname())
    server.close()
    assert os.waitpid(helper, 0)[1] == 0


def in_order():
    # Of each sender, whatever way its datagrams go.
    receiver = made()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200000)
    flow = threading.Semaphore(20)

    def send(which):
        one = socket.socket(INET, UDP)
        if which % 2:
            one.connect(receiver.getsockname())
        for number in range(1500):
            flow.acquire()
            text = b"%d %d " % (which, number) + b"x" * (number % 400)
            if which % 2 and number % 3:
                one.send(text)
            elif number % 50 == 7:
                one.sendmsg([text], [(socket.IPPROTO_IP, socket.IP_TTL, b"\x20\0\0\0")], 0, receiver.getsockname())
            else:
                one.sendto(text, receiver.getsockname())

    threads = [threading.Thread(daemon=True, target=send, args=(which,)) for which in range(4)]
    [thread.start() for thread in threads]
    last = [-1] * 4
    for index in range(4 * 1500):
        if index % 500 == 3:
            signal.sigtimedwait([], 0.002)
        if index % 7 == 0:
            select.select([receiver], [], [], 20)
        which, number = map(int, receiver.recv(2000).split()[:2])
        flow.release()
        assert number == last[which] + 1, (which, number, last)
        last[which] = number
    [thread.join() for thread in threads]


def passed_on():
    # An inherited one, after exec; then one that has come by a message.
    server = made()
    program = "import socket, sys; one = socket.socket(fileno=int(sys.argv[1])); one.settimeout(20)\n" \
        "for _ in range(200): text, sender = one.recvfrom(999); one.sendto(text[::-1], sender)"
    with made() as one:
        ask_some = threading.Thread(daemon=True, target=ask, args=(one, server.getsockname(), 200, 500))
        child = subprocess.Popen([sys.executable, "-c", program, str(server.fileno())], pass_fds=[server.fileno()])
        ask_some.start()
        ask_some.join()
        assert child.wait() == 0
    ours, theirs = socket.socketpair()
    with made() as one:
        pid = os.fork()
        if pid == 0:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            got = socket.socket(fileno=fds[0])
            got.settimeout(20)
            for _ in range(200):
                text, sender = got.recvfrom(999)
                got.sendto(text[::-1], sender)
            os._exit(0)
        other = made()
        ask_before = threading.Thread(daemon=True, target=ask, args=(one, other.getsockname(), 220, 500))
        ask_before.start()
        for _ in range(20):
            text, sender = other.recvfrom(999)
            other.sendto(text[::-1], sender)
        socket.send_fds(ours, [b"x"], [other.fileno()])
        other.close()
        ask_before.join()
        assert os.waitpid(pid, 0)[1] == 0


def errors():
    server, one = made(), socket.socket(INET, UDP)
    one.settimeout(20)
    one.connect(server.getsockname())
    for _ in range(50):
        one.send(b"x")
        server.sendto(b"y", server.recvfrom(9)[1])
        assert one.recv(9) == b"y"
    server.close()
    told = []
    for _ in range(2):
        try:
            one.send(b"x")
            told.append("sent")
            one.recv(9)
        except OSError as error:
            told.append(error.strerror)
    one.settimeout(0.05)
    try:
        one.recv(9)
    except TimeoutError:
        told.append("timed out")
    print("errors:", told)


def connected_anew():
    # One that hears somebody else by now hears its former peer no more.
    server, first, second = made(), made(), made()
    server.settimeout(0.1)
    for one in first, second:
        for _ in range(20):
            one.sendto(b"x", server.getsockname())
            assert server.recv(9) == b"x"
    server.connect(second.getsockname())
    first.sendto(b"first", server.getsockname())
    second.sendto(b"second", server.getsockname())
    print("hears:", server.recv(9))
    try:
        print("hears too:", server.recv(9))
    except TimeoutError:
        print("nobody else")


def selected():
    # Many at once, level-triggered.
    with selectors.DefaultSelector() as chosen:
        servers = [made() for _ in range(20)]
        for server in servers:
            server.setblocking(False)
            chosen.register(server, selectors.EVENT_READ)
        client = socket.socket(INET, UDP)
        for index in range(2000):
            client.sendto(b"%d" % index, servers[index * 7 % 20].getsockname())
            ready = chosen.select(20)
            assert [key.fileobj for key, _ in ready] == [servers[index * 7 % 20]]
            assert ready[0][0].fileobj.recv(99) == b"%d" % index


for step in servers, children, in_order, passed_on, errors, connected_anew, selected:
    step()
    print(step.__name__, flush=True)
asyncio.run(with_asyncio())
print("all")
