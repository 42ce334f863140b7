# Named datagram sockets of AF_UNIX in the ways that Python has: a logger, servers, flows that have to wait, and what is
# refused.
import array
import errno
import logging.handlers
import os
import signal
import socket
import socketserver
import struct
import tempfile
import threading

UNIX, DATAGRAM = socket.AF_UNIX, socket.SOCK_DGRAM
folder = tempfile.mkdtemp()
count = 0


def name(is_abstract=False):
    global count
    count += 1
    return b"\0%d.%d" % (os.getpid(), count) if is_abstract else f"{folder}/{count}"


def made(*options, at=None):
    one = socket.socket(UNIX, DATAGRAM)
    for option in options:
        one.setsockopt(socket.SOL_SOCKET, *option)
    if at:
        one.bind(at)
    one.settimeout(20)
    return one


def failed(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"


def drain(one):
    # How many have come, without waiting for more.
    one.setblocking(False)
    received = 0
    while failed(lambda: one.recv(20000)) == "done":
        received += 1
    one.settimeout(20)
    return received


class Reverse(socketserver.BaseRequestHandler):
    def handle(self):
        text, one = self.request
        one.sendto(text[::-1], self.client_address)


def servers():
    for is_abstract in False, True:
        at = name(is_abstract)
        with socketserver.UnixDatagramServer(at, Reverse) as server:
            thread = threading.Thread(daemon=True, target=server.serve_forever, args=(0.05,))
            thread.start()
            for connects in False, True:
                one = made(at=name(is_abstract))
                if connects:
                    one.connect(at)
                for index in range(2000):
                    text = b"%d " % index * (index % 300)
                    one.send(text) if connects else one.sendto(text, at)
                    got, sender = one.recvfrom(9000)
                    assert got == text[::-1] and sender == at, (index, sender)
            server.shutdown()
            thread.join()


def a_logger():
    server = made(at=name())
    handler = logging.handlers.SysLogHandler(server.getsockname())
    log = logging.getLogger("sbx")
    log.addHandler(handler)
    for index in range(300):
        log.error("message %d", index)
        assert server.recv(999).rstrip(b"\0").endswith(b"message %d" % index)


def in_order_and_whole():
    # Who is faster than who receives has to wait; of each sender nothing is lost, and nothing overtaken.
    for at in name(), name(True):
        server, senders, each = made(at=at), 3, 20000
        for which in range(senders):
            if os.fork() == 0:
                one = made()
                if which:
                    one.connect(at)
                for number in range(each):
                    text = struct.pack("ii", which, number) + b"x" * (number * 7 % 900)
                    if number % 1000 == 999:
                        fds = array.array("i", [0])
                        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                        one.sendmsg([text], control, 0, None if which else at)
                    elif which:
                        one.send(text)
                    else:
                        one.sendto(text, at)
                os._exit(0)
        last, rights = [-1] * senders, 0
        for index in range(senders * each):
            if index % 5000 == 7:
                signal.sigtimedwait([], 0.002)
            text, control, _, _ = server.recvmsg(9000, 99)
            which, number = struct.unpack_from("ii", text)
            assert number == last[which] + 1 and len(text) == 8 + number * 7 % 900, (which, number, last)
            last[which] = number
            for _, _, data in control:
                rights += 1
                os.close(array.array("i", data)[0])
        print(last, rights, drain(server))
        for _ in range(senders):
            assert os.wait()[1] == 0


def what_is_refused():
    at, other = name(), name()
    server, client, third = made(at=at), made(at=other), made()
    for _ in range(5):
        client.sendto(b"x", at)
        server.sendto(server.recv(9), other)
        client.recv(9)
    # Who is connected hears its peer only.
    client.connect(at)
    print(failed(lambda: third.sendto(b"x", other)), failed(lambda: third.connect(other)))
    server.sendto(b"y", other)
    print(client.recv(9))
    # Longer than the sender's buffer.
    small = made((socket.SO_SNDBUF, 5000))
    for length in 9000, 9900, 9968, 9969, 20000:
        print(length, failed(lambda: small.sendto(b"x" * length, at)))
        drain(server)
    # Nobody receives: in the end it is to be tried again.
    for one in (client, made()):
        one.connect(at)
        one.setblocking(False)
        while (ended := failed(lambda: one.send(b"x" * 500))) == "done":
            pass
        print(ended)
    assert drain(server) > 10
    print(failed(lambda: client.send(b"again")), server.recv(9))
    # A path that nobody may write to, and one where there is nothing.
    os.chmod(at, 0)
    if os.geteuid() == 0:
        pid = os.fork()
        if pid == 0:
            one = made()
            for _ in range(5):
                one.sendto(b"x", at)
            os.chmod(folder, 0o755)
            os.setresuid(1000, 1000, 1000)
            print([failed(lambda: one.sendto(b"x", at)) for _ in range(3)], flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    os.rename(at, at + "x")
    print(failed(lambda: third.sendto(b"x", at)))
    drain(server)
    # It has another name now, and is the same.
    os.chmod(at + "x", 0o777)
    for _ in range(5):
        third.sendto(b"z", at + "x")
        assert server.recv(9) == b"z"
    server.close()
    print(failed(lambda: third.sendto(b"x", at + "x")))
    client.setblocking(True)
    print(failed(lambda: client.send(b"x")), failed(lambda: client.send(b"x")))


def credentials():
    at = name(True)
    server, client = made((socket.SO_PASSCRED, 1), at=at), made()
    for _ in range(5):
        client.sendto(b"x", at)
        text, control, _, sender = server.recvmsg(9, 99)
        assert struct.unpack("iii", control[0][2])[0] == os.getpid(), control
    print(len(control), sender)


def shut_down():
    at = name(True)
    server, client = made(at=at), made()
    client.connect(at)
    for _ in range(5):
        client.send(b"x")
        server.recv(9)
    client.send(b"last")
    server.shutdown(socket.SHUT_RD)
    print(failed(lambda: client.send(b"x")), server.recv(9), drain(server))
    client.shutdown(socket.SHUT_WR)
    print(failed(lambda: client.send(b"x")))


for act in servers, a_logger, in_order_and_whole, what_is_refused, credentials, shut_down:
    print(act.__name__, flush=True)
    act()
os.system(f"rm -r {folder}")
