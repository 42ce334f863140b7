"""Messages that hop among event loops of asyncio, one in each thread; where to depends on the message alone. Prints how
many came to each."""

import asyncio
import threading

LOOPS, MESSAGES, HOPS = 5, 20, 300
loops = [asyncio.new_event_loop() for _ in range(LOOPS)]
heard = [0] * LOOPS
left = MESSAGES
lock = threading.Lock()


def hear(at, state, hops):
    global left
    heard[at] += 1
    if hops == 0:
        with lock:
            left -= 1
        if left == 0:
            for loop in loops:
                loop.call_soon_threadsafe(loop.stop)
        return
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    to = (state >> 33) % LOOPS
    loops[to].call_soon_threadsafe(hear, to, state, hops - 1)


threads = [threading.Thread(target=loop.run_forever) for loop in loops]
for thread in threads:
    thread.start()
for number in range(MESSAGES):
    loops[number % LOOPS].call_soon_threadsafe(hear, number % LOOPS, number, HOPS)
for thread in threads:
    thread.join()
print(*heard, sep="\n")
