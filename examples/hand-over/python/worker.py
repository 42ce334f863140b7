"""A process that answers what it is handed, until it is ended."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../../ext-api/python"))
import sbx

box = sbx.current()
print(os.getpid(), "waits", flush=True)
while True:
    box.wait(1)
