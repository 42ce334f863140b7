"""Two processes, a stream between them: one sends bytes in pieces, and descriptors with some, and pauses now and then; the
other looks at them and waits for all of a length, or receives what there is. All comes, in its order. """

import array
import os
import random
import socket
import sys
import time

ALL = 400_000
WHOLE = socket.MSG_WAITALL


def a_pair(family):
    if family == socket.AF_UNIX:
        return socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    return one, other


def send(one, content, with_descriptors):
    at = passed = 0
    while at < len(content):
        piece = content[at:at + random.choice([1, 7, 100, 3000])]
        if with_descriptors and random.random() < 0.05:
            at += one.sendmsg([piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
            passed += 1
        else:
            at += one.send(piece)
        if random.random() < 0.02:
            time.sleep(random.random() * 0.0005)
    return passed


def receive(other, content, with_descriptors):
    at = passed = 0
    while at < len(content):
        want = min(random.choice([1, 10, 500, 9000]), len(content) - at)
        how = random.randrange(4)
        if how == 0:
            seen = other.recv(want, socket.MSG_PEEK)
            assert seen and seen == content[at:at + len(seen)]
        if how == 1 and not with_descriptors:
            # The kernel waits for that by TCP only, and for ever if small packets have filled its buffer before.
            seen = other.recv(min(want, 50), socket.MSG_PEEK | (WHOLE if other.family == socket.AF_INET else 0))
            assert seen == content[at:at + len(seen)] and (len(seen) == min(want, 50) or other.family == socket.AF_UNIX)
        flags = WHOLE if how < 3 else 0
        got, more, _, _ = other.recvmsg(want, 200, flags)
        for _, _, fds in more:
            for fd in array.array("i", fds):
                os.close(fd)
                passed += 1
        assert got == content[at:at + len(got)], at
        assert not flags or len(got) == want or more, (len(got), want)
        at += len(got)
    return passed


def main(seed):
    for family in [socket.AF_UNIX, socket.AF_INET]:
        for with_descriptors in [False, True][:2 if family == socket.AF_UNIX else 1]:
            random.seed(seed)
            content = random.randbytes(ALL)
            one, other = a_pair(family)
            child = os.fork()
            if child == 0:
                other.close()
                os._exit(send(one, content, with_descriptors))
            one.close()
            passed = receive(other, content, with_descriptors)
            assert other.recv(1) == b""
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == passed
            print(family.name, with_descriptors, "all")


main(int(sys.argv[1]))
