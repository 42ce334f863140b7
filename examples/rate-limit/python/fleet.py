"""A fleet of workers that share one limit: together they are allowed what one would be."""

import multiprocessing
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../ext-api/python"))
import sbx

WORKERS, REQUESTS = 4, 100


def worker(_):
    allow = sbx.current().handler("limit.allow")
    return sum(allow(b"fleet", 1) for _ in range(REQUESTS))


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        allowed = sum(pool.map(worker, range(WORKERS)))
    print("python: %d of %d requests of %d workers allowed" % (allowed, WORKERS * REQUESTS, WORKERS))
