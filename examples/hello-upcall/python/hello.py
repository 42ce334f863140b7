"""Calls the hello extension."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../ext-api/python"))

import sbx

box = sbx.current()
print(box.call("hello.greet", "python"), "total", box.call("hello.add", 1))
