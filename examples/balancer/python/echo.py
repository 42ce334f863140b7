"""A backend: answers over TCP and UDP with its name and what it was told.

    python3 echo.py NAME [PORT]
"""
import socketserver
import sys
import threading

NAME = sys.argv[1].encode()
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 7000


class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(NAME + b": " + line)


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, socket = self.request
        socket.sendto(NAME + b": " + data, self.client_address)


class Streams(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 100


datagrams = socketserver.UDPServer(("", PORT), Datagram)
threading.Thread(target=datagrams.serve_forever, daemon=True).start()
Streams(("", PORT), Stream).serve_forever()
