# Eventfds in every way that Python has: threads, children, loops, and what has to be the kernel's.
import asyncio
import os
import select
import socket
import struct
import subprocess
import sys
import threading

ROUNDS = 2000


def threads():
    forth, back = os.eventfd(0), os.eventfd(0, os.EFD_SEMAPHORE)

    def answer():
        for _ in range(ROUNDS):
            os.eventfd_write(back, os.eventfd_read(forth))

    thread = threading.Thread(target=answer)
    thread.start()
    sum = 0
    for i in range(ROUNDS):
        os.eventfd_write(forth, i % 3 + 1)
        for _ in range(i % 3 + 1):
            sum += os.eventfd_read(back)
    thread.join()
    print('threads', sum)


def children():
    counter, done = os.eventfd(5), os.eventfd(0)
    child = os.fork()
    if child == 0:
        total = 0
        while total < 5 + ROUNDS:
            total += os.eventfd_read(counter)
        os.eventfd_write(done, total)
        os._exit(0)
    for _ in range(ROUNDS):
        os.eventfd_write(counter, 1)
    print('children', os.eventfd_read(done), os.waitpid(child, 0)[1])


def across_exec():
    counter = os.eventfd(0, 0)
    os.eventfd_write(counter, 7)
    script = f'import os; print("exec", os.eventfd_read({counter})); os.eventfd_write({counter}, 9)'
    sys.stdout.flush()
    subprocess.run([sys.executable, '-c', script], pass_fds=[counter], check=True)
    print('afterwards', os.eventfd_read(counter))


def to_a_stranger(path):
    counter = os.eventfd(3, os.EFD_NONBLOCK)
    os.eventfd_write(counter, 4)
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(path)
    socket.send_fds(stranger, [b'x'], [counter])
    # It says what it has read.
    print('stranger', struct.unpack('Q', stranger.recv(8)))
    os.eventfd_write(counter, 2)
    print('left', os.eventfd_read(counter))


async def loop():
    one, two = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    running, ended, sums = asyncio.get_running_loop(), asyncio.Event(), [0, 0]

    def forth():
        sums[0] += os.eventfd_read(one)
        os.eventfd_write(two, 2)

    def back():
        sums[1] += os.eventfd_read(two)
        ended.set() if sums[0] >= ROUNDS else os.eventfd_write(one, 1)

    running.add_reader(one, forth)
    running.add_reader(two, back)
    os.eventfd_write(one, 1)
    await ended.wait()
    print('loop', sums)


def edges():
    counter, epoll = os.eventfd(0, os.EFD_NONBLOCK), select.epoll()
    epoll.register(counter, select.EPOLLIN | select.EPOLLET)
    written, seen, is_seen = 0, 0, threading.Event()

    def write():
        nonlocal written
        for _ in range(ROUNDS):
            written += 1
            os.eventfd_write(counter, 1)
            while seen < written:
                is_seen.wait()
                is_seen.clear()

    # As tokio's loop: nobody ever reads it.
    thread = threading.Thread(target=write)
    thread.start()
    while seen < ROUNDS:
        if not epoll.poll(5):
            print('lost', seen, written)
        seen = written
        is_seen.set()
    thread.join()
    print('edges', os.eventfd_read(counter))


threads()
children()
across_exec()
to_a_stranger(sys.argv[1])
asyncio.run(loop())
edges()
