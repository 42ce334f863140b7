"""Receives descriptors, and says what can be read from them."""

import os
import socket
import sys

server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    connection, _ = server.accept()
    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
    with os.fdopen(fds[0], "rb") as file:
        connection.sendall(file.read())
    connection.close()
