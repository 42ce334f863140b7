"""Hashes in processes of a pool and runs children, for so many seconds."""

import hashlib
import multiprocessing
import subprocess
import sys
import time


def digest(number):
    return hashlib.sha256(str(number).encode() * 5000).hexdigest()


if __name__ == "__main__":
    end = time.monotonic() + float(sys.argv[1])
    seen = set()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        while not seen or time.monotonic() < end:
            digests = "".join(pool.map(digest, range(300)))
            # Not sh, where that is dash: a signal at the wrong moment ends its forks (see README.md).
            shell = subprocess.check_output(["bash", "-c", "echo shell | tr a-z A-Z"])
            seen.add((hashlib.sha256(digests.encode()).hexdigest(), shell))
    print(sorted(seen))
