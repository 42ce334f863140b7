"""Pipes in every way that Python has; prints the same wherever their bytes go."""

import array
import asyncio
import errno
import fcntl
import hashlib
import multiprocessing
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time


def error(do, *args):
    try:
        return do(*args)
    except OSError as failure:
        return errno.errorcode[failure.errno]


def read_all(fd):
    return hashlib.md5(b"".join(iter(lambda: os.read(fd, 7000), b""))).hexdigest()


def whole_records():
    """Writers whose records of up to PIPE_BUF bytes nobody breaks apart, read by several."""
    reader, writer = os.pipe()
    for which in range(4):
        if os.fork() == 0:
            random.seed(which)
            for number in range(600):
                size = random.choice([8, 30, 700, 4096])
                os.write(writer, struct.pack("<HBBI", size, which, 0, number) + bytes([which]) * (size - 8))
            os._exit(0)
    os.close(writer)
    last, got = [-1] * 4, 0
    rest = b""
    while piece := os.read(reader, random.randrange(1, 20000)):
        rest += piece
        while len(rest) >= 8 and len(rest) >= (size := struct.unpack_from("<H", rest)[0]):
            _, which, _, number = struct.unpack_from("<HBBI", rest)
            assert rest[8:size] == bytes([which]) * (size - 8) and number == last[which] + 1
            last[which], got, rest = number, got + 1, rest[size:]
    for _ in range(4):
        os.wait()
    os.close(reader)
    print("records", got, len(rest))


def tokens():
    """Processes that take turns by tokens of eight bytes, which each takes whole."""
    reader, writer = os.pipe()
    report_to = os.pipe()
    for which in range(3):
        if os.fork() == 0:
            for _ in range(2000):
                token = os.read(reader, 8)
                assert len(token) == 8 and token[:1] * 8 == token
                os.write(writer, token)
            os.write(report_to[1], b"x")
            os._exit(0)
    os.write(writer, b"a" * 8 + b"b" * 8)
    for _ in range(3):
        os.wait()
    print("tokens", os.read(report_to[0], 9), sorted(os.read(reader, 99)))
    for fd in (reader, writer, *report_to):
        os.close(fd)


def modes():
    reader, writer = os.pipe2(os.O_NONBLOCK)
    print("empty", error(os.read, reader, 1), error(os.read, writer, 1), error(os.write, reader, b"x"))
    print("size", fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    total = 0
    while (sent := error(os.write, writer, b"x" * 4096)) == 4096:
        total += sent
    print("full", sent, total >= 65536, total <= 3 * 65536, select.select([reader], [writer], [], 0)[1])
    count = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, count)
    print("there", count[0] == total)
    got = 0
    while isinstance(piece := error(os.read, reader, 5000), bytes) and piece:
        got += len(piece)
    print("taken", got == total, piece)
    os.write(writer, b"abc")
    os.close(writer)
    print("end", os.read(reader, 2), os.read(reader, 2), os.read(reader, 2))
    os.close(reader)
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(reader)
    print("broken", error(os.write, writer, b"x"))
    os.close(writer)
    reader, writer = os.pipe()
    for size in (1 << 20, 4096, 8192):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
        os.write(writer, b"y" * 4000)
        print("size", fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ), len(os.read(reader, 9999)))
    os.write(writer, b"z" * 6000)
    print("busy", error(fcntl.fcntl, writer, fcntl.F_SETPIPE_SZ, 4096))
    # Packets, from now on.
    flags = fcntl.fcntl(writer, fcntl.F_GETFL)
    fcntl.fcntl(writer, fcntl.F_SETFL, flags | os.O_DIRECT)
    print("before", len(os.read(reader, 9999)))
    os.write(writer, b"one")
    os.write(writer, b"two")
    print("packets", os.read(reader, 99), os.read(reader, 99))
    os.close(reader)
    os.close(writer)


def readiness():
    reader, writer = os.pipe()
    poll, epoll = select.poll(), select.epoll()
    poll.register(reader, select.POLLIN)
    epoll.register(reader, select.EPOLLIN | select.EPOLLET)
    state = lambda: ([event for _, event in poll.poll(0)], [event for _, event in epoll.poll(0)])
    print("none", state())
    os.write(writer, b"abc")
    print("some", state(), state())
    os.read(reader, 2)
    print("less", state())
    os.write(writer, b"d")
    print("more", state())
    os.read(reader, 9)
    threading.Timer(0.05, os.write, (writer, b"e")).start()
    print("later", [event for _, event in epoll.poll(5)], os.read(reader, 9))
    threading.Timer(0.05, os.write, (writer, b"f")).start()
    print("later", [event for _, event in poll.poll(5000)], os.read(reader, 9))
    threading.Timer(0.05, os.write, (writer, b"g")).start()
    print("later", select.select([reader], [], [], 5)[0] == [reader], os.read(reader, 9))
    threading.Timer(0.05, os.close, (writer,)).start()
    print("end", [event for _, event in epoll.poll(5)], [event for _, event in poll.poll(0)], os.read(reader, 1))
    epoll.close()
    os.close(reader)


def interrupted():
    """A read that sleeps is interrupted by a handler that raises, or goes on after one that does not."""
    class Raised(Exception):
        pass

    def handler(*_):
        raise Raised

    reader, writer = os.pipe()
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        os.read(reader, 1)
        print("not interrupted")
    except Raised:
        print("interrupted")
    signal.signal(signal.SIGALRM, lambda *_: os.write(writer, b"from the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    print("handler", os.read(reader, 99))
    os.close(reader)
    os.close(writer)


def moved():
    reader, writer = os.pipe()
    other, into = os.pipe()
    os.write(writer, b"one two ")
    print("splice", os.splice(reader, into, 4), os.read(other, 99))
    os.write(writer, b"three")
    print("splice", os.read(reader, 99))
    for fd in (reader, writer, other, into):
        os.close(fd)
    reader, writer = os.pipe()
    os.write(writer, b"head ")
    with open("/usr/bin/env", "rb") as file:
        sent = os.sendfile(writer, file.fileno(), 0, 5000)
        file.seek(0)
        same = os.read(reader, 9000) == b"head " + file.read(sent)
    print("sendfile", sent, same)
    again = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY)
    os.write(again, b"again")
    os.write(writer, b" and again")
    print("opened", os.read(reader, 99))
    for fd in (reader, writer, again):
        os.close(fd)


def children():
    data = random.Random(1).randbytes(3_000_000)
    ended = subprocess.run(["cat"], input=data, stdout=subprocess.PIPE, check=True)
    print("cat", ended.stdout == data)
    for _ in range(20):
        child = subprocess.Popen(["true"], stdin=subprocess.PIPE)
        child.wait()
        # That nobody reads is known at once.
        print("gone", error(os.write, child.stdin.fileno(), b"x"))
        child.stdin.close()
    try:
        subprocess.run(["/nonexistent"], stdout=subprocess.PIPE, check=False)
    except FileNotFoundError as failure:
        print("missing", failure.filename)
    one = subprocess.Popen(["seq", "200000"], stdout=subprocess.PIPE)
    two = subprocess.Popen(["sort", "-n"], stdin=one.stdout, stdout=subprocess.PIPE)
    one.stdout.close()
    print("chain", hashlib.md5(two.communicate()[0]).hexdigest(), one.wait(), two.returncode)
    reader, writer = multiprocessing.Pipe(duplex=False)

    def send():
        for number in range(2000):
            writer.send((number, "x" * (number * 37 % 9000)))
        writer.send(None)

    child = multiprocessing.get_context("fork").Process(target=send)
    child.start()
    got = list(iter(reader.recv, None))
    child.join()
    print("sent", len(got), all(text == "x" * (number * 37 % 9000) for number, text in got))
    pool = multiprocessing.get_context("fork").Pool(3)
    print("pool", sum(pool.map(len, ["x" * size for size in range(3000)], 7)))
    pool.close()
    pool.join()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        for size in range(0, 200000, 1111):
            os.write(writer, b"y" * size)
        os._exit(0)
    os.close(writer)
    time.sleep(0.01)
    print("forked", read_all(reader))
    os.wait()
    os.close(reader)


async def tasks():
    child = await asyncio.create_subprocess_exec(
        "tr", "a-z", "A-Z", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    answer, _ = await child.communicate(b"hello " * 100_000)
    print("async", answer == b"HELLO " * 100_000, child.returncode)
    child = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    for number in range(300):
        child.stdin.write(b"%d\n" % number)
        assert int(await child.stdout.readline()) == number
    child.stdin.close()
    print("lines", await child.stdout.read(), await child.wait())


def passed(path):
    """An end goes to a program that knows nothing of rings, with bytes that are there already."""
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(path)
    reader, writer = os.pipe()
    os.write(writer, b"before ")
    socket.send_fds(stranger, [b"x"], [reader])
    os.close(reader)
    os.write(writer, b"after")
    os.close(writer)
    print("passed", stranger.makefile().read())


random.seed(3)
for part in (whole_records, tokens, modes, readiness, interrupted, moved, children):
    part()
asyncio.run(tasks())
passed(sys.argv[1])
