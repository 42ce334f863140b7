# What sockets with records do besides moving them, and what options of others change; prints all of it.
import array
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

UNIX, SEQPACKET, DGRAM, STREAM = socket.AF_UNIX, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM, socket.SOCK_STREAM
SO_PEEK_OFF = 42


def tried(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else str(error)


def pairs():
    for kind in (SEQPACKET, DGRAM):
        yield kind.name, socket.socketpair(UNIX, kind)
    server = socket.socket(UNIX, SEQPACKET)
    server.bind("\0records" + str(os.getpid()))
    server.listen()
    one = socket.socket(UNIX, SEQPACKET)
    one.connect(server.getsockname())
    yield "connected", (one, server.accept()[0])


def warm(one, two):
    for i in range(20):
        one.send(b"x" * i)
        assert two.recv(100) == b"x" * i
        two.send(b"y")
        one.recv(1)


def bounds(one, two):
    sent = [os.urandom(n) for n in (1, 0, 70000, 3, 0, 0, 65536, 65535, 100000, 9)]
    done = []
    receiver = threading.Thread(target=lambda: done.extend(two.recv(200000) for _ in sent))
    receiver.start()
    for piece in sent:
        one.send(piece)
        time.sleep(0.001)
    receiver.join()
    print("whole", done == sent)
    # None of it is read before all has been sent.
    for piece in sent[:6]:
        one.send(piece)
    print("whole", [two.recv(200000) for _ in sent[:6]] == sent[:6])
    print("too long", tried(one.send, bytes(1 << 20)))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 3000)
    print("too long", tried(one.send, bytes(10000)), tried(one.send, bytes(2000)), len(two.recv(9999)))


def names(one, two):
    one.send(b"named")
    print("from", two.recvfrom(10)[1] in (None, ""))
    two.send(b"named")
    data, control, flags, address = one.recvmsg(3, 100)
    print(data, control, flags, bool(address), one.getpeername() == address or not address)
    print(two.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    pid, uid, gid = struct.unpack("3i", two.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    print("peer", pid == os.getpid(), uid == os.getuid())


def passing(one, two):
    inner = socket.socketpair(UNIX, SEQPACKET)
    inner[0].send(b"inside")
    one.send(b"before")
    socket.send_fds(one, [b"with"], [inner[1].fileno()])
    one.send(b"behind")
    inner[1].close()
    print(two.recv(10))
    data, fds, flags, _ = socket.recv_fds(two, 10, 4)
    got = socket.socket(fileno=fds[0])
    print(data, len(fds), flags, got.recv(10), two.recv(10))
    got.send(b"back")
    print(inner[0].recv(10))


def waiting(one, two):
    two.settimeout(0.02)
    print(tried(two.recv, 1))
    two.settimeout(None)
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20000))
    print(tried(two.recv, 1))
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    for how in ("select", "poll", "epoll", "edge"):
        threading.Timer(0.005, one.send, (b"",)).start()
        if how == "select":
            print(how, select.select([two], [], [], 5)[0] == [two])
        else:
            poll = select.poll() if how == "poll" else select.epoll()
            poll.register(two, select.POLLIN | (select.EPOLLET if how == "edge" else 0))
            print(how, poll.poll(5000)[0][1])
            if how == "edge":
                one.send(b"again")
                print(poll.poll(1000)[0][1], poll.poll(0), two.recv(9))
        print(two.recv(9))

    def handler(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        one.send(b"from a handler")

    signal.signal(signal.SIGALRM, handler)
    # Python's own handler notes what has come; a later one interrupts the call.
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    print(two.recv(50))


def counts(one, two):
    def asked(of, request):
        word = array.array("i", [-1])
        fcntl.ioctl(of, request, word)
        return word[0]

    for n in (5, 0, 7):
        one.send(b"n" * n)
    print(asked(two, termios.FIONREAD), asked(one, termios.TIOCOUTQ) > 0)
    [two.recv(9) for _ in range(3)]
    print(asked(two, termios.FIONREAD), asked(one, termios.TIOCOUTQ))


def options(one, two):
    one.send(b"bare")
    print(two.recvmsg(9, 100)[:3])
    two.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    one.send(b"told")
    data, [(level, kind, told)], flags, _ = two.recvmsg(9, 100)
    print(data, level, kind, struct.unpack("3i", told) == (os.getpid(), os.getuid(), os.getgid()), flags)
    two.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    one.send(b"looked at")
    print(two.recv(3, socket.MSG_PEEK), two.recv(3, socket.MSG_PEEK), two.recv(9))


def children(one, two):
    child = subprocess.Popen(["cat"], stdin=two, stdout=subprocess.PIPE)
    for n in (3, 4, 5):
        one.send(b"%d" % n * n)
        time.sleep(0.001)
    print(os.read(child.stdout.fileno(), 3))
    child.kill()
    child.wait()
    # What it has not read of these has come whole; a program that is killed has read what it has.
    fcntl.fcntl(two, fcntl.F_SETFL, os.O_NONBLOCK)
    while isinstance(tried(two.recv, 99), bytes):
        pass
    fcntl.fcntl(two, fcntl.F_SETFL, 0)


def files(one, two):
    source, into = os.memfd_create("records"), os.pipe()
    os.write(source, b"from a file")
    print(os.sendfile(one.fileno(), source, 0, 11), two.recv(20))
    print(os.writev(one.fileno(), [b"a", b"bc"]), two.recv(20))
    one.send(b"at no place")
    print(os.preadv(two.fileno(), [piece := bytearray(20)], -1, os.RWF_NOWAIT), piece)
    print(tried(os.preadv, two.fileno(), [piece], -1, os.RWF_NOWAIT))
    print(os.pwritev(one.fileno(), [b"nor", b"here"], -1, os.RWF_DSYNC), two.recv(20))
    two.send(b"spliced")
    print(os.splice(one.fileno(), into[1], 100), os.read(into[0], 100))


def ends(name, one, two):
    one.send(b"last")
    one.close()
    print("ends", two.recv(9), tried(two.recv, 9, socket.MSG_DONTWAIT))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    print("ends", tried(two.send, b"x"), tried(two.send, b"x"))


def others():
    """Options that streams have, too."""
    one, two = socket.socketpair()
    one.send(b"1")
    print(two.recvmsg(9, 100)[:3])
    two.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    one.send(b"2")
    print(len(two.recvmsg(9, 100)[1]))
    two.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    one.send(b"looked at")
    print(two.recv(3, socket.MSG_PEEK), two.recv(3, socket.MSG_PEEK), two.recv(9))
    server = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(server.getsockname())
    two = server.accept()[0]
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    one.send(b"12345")
    print(select.select([two], [], [], 0.01)[0])
    threading.Timer(0.01, one.send, (b"another ten",)).start()
    print(two.recv(20))
    info = [struct.unpack("29Q", of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)) for of in (one, two)]
    print("sent", info[0][25], "received", info[1][16])


def given_another_peer():
    one, two = socket.socketpair(UNIX, DGRAM)
    warm(one, two)
    two.bind("\0another" + str(os.getpid()))
    one.send(b"lost")
    third = socket.socket(UNIX, DGRAM)
    print(tried(third.sendto, b"x", two.getsockname()))
    print(ctypes.CDLL(None).connect(two.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16))
    print(tried(two.recv, 9, socket.MSG_DONTWAIT), third.sendto(b"of a third", two.getsockname()), two.recv(20))
    # The kernel says by an error that something was lost.
    if tried(one.send, b"still") == "ECONNRESET":
        one.send(b"still")
    print(two.recv(20))


for name, (one, two) in pairs():
    print("===", name)
    warm(one, two)
    bounds(one, two)
for part in (names, passing, waiting, counts, options, children, files):
    for name, (one, two) in pairs():
        print("---", part.__name__, name)
        warm(one, two)
        part(one, two)
for name, (one, two) in pairs():
    print("---", name)
    warm(one, two)
    ends(name, one, two)
others()
given_another_peer()
sys.stdout.flush()
