# Many connections open at once: each carries pieces of its own there and back, in several rounds.
import os
import resource
import select
import socket
import sys

COUNT, ROUNDS = int(sys.argv[1]), 3
LEN = 2000
limit = COUNT + 100
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))


def serve(server):
    epoll, open = select.epoll(), {}
    server.setblocking(False)
    epoll.register(server, select.EPOLLIN)
    done = 0
    while done < COUNT:
        for fd, _ in epoll.poll():
            if fd == server.fileno():
                one, _ = server.accept()
                open[one.fileno()] = one
                epoll.register(one, select.EPOLLIN)
            elif piece := open[fd].recv(LEN):
                open[fd].sendall(piece)
            else:
                epoll.unregister(fd)
                open.pop(fd).close()
                done += 1


def piece(number, turn):
    return (b"%d of turn %d " % (number, turn) * LEN)[:LEN]


server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(4096)
child = os.fork()
if child == 0:
    serve(server)
    os._exit(0)
all = [socket.create_connection(server.getsockname()) for _ in range(COUNT)]
server.close()
for turn in range(ROUNDS):
    for number, one in enumerate(all):
        one.sendall(piece(number, turn))
    for number, one in enumerate(all):
        got = b""
        while len(got) < LEN:
            more = one.recv(LEN - len(got))
            assert more, (number, turn)
            got += more
        assert got == piece(number, turn), (number, turn)
for one in all:
    one.close()
assert os.waitpid(child, 0)[1] == 0
print(COUNT, "open at once")
