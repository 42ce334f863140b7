"""Counts the lines of a packed file, in memory that is filled as it is read.

    python3 words.py FILE
"""

import ctypes
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../ext-api/python"))
import sbx  # noqa: E402

box = sbx.current()
address = box.call("pager.map", os.path.abspath(sys.argv[1]))
text = (ctypes.c_char * box.call("pager.len", address)).from_address(address)
print(f"{len(text)} bytes, {bytes(text).count(10)} lines")
