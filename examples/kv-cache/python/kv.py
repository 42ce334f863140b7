"""Stores something for the others, and reads what they stored."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../ext-api/python"))
import sbx

box = sbx.current()
get, put = box.handler("kv.get"), box.handler("kv.put")
found = get(b"from-c")
print("from C:", found.decode() if found is not None else "nothing")
put(b"from-python", b"a value that python stored", 0)
