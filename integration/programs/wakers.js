// Messages that hop among threads of node, whose loops wake each other by eventfds; where to depends on the message
// alone. Prints how many came to each.
const { Worker, MessageChannel, isMainThread, parentPort } = require('worker_threads');

const THREADS = 5;
const MESSAGES = 20;
const HOPS = 400;

function main() {
  const workers = [...Array(THREADS)].map(() => new Worker(__filename));
  const ports = workers.map(() => []);
  for (let one = 0; one < THREADS; one++) {
    for (let other = one + 1; other < THREADS; other++) {
      const { port1, port2 } = new MessageChannel();
      ports[one][other] = port1;
      ports[other][one] = port2;
    }
  }
  let left = MESSAGES;
  const heard = [];
  workers.forEach((worker, at) => {
    worker.postMessage({ at, ports: ports[at] }, ports[at].filter((port) => port));
    worker.on('message', (message) => {
      if ('heard' in message) heard[at] = message.heard;
      else if (--left === 0) workers.forEach((other) => other.postMessage('end'));
    });
    worker.on('exit', () => { if (Object.keys(heard).length === THREADS) process.stdout.write(`${heard.join('\n')}\n`), heard.length = 0; });
  });
  for (let state = 1; state <= MESSAGES; state++) workers[state % THREADS].postMessage({ state, hops: HOPS });
}

function inThread() {
  let own, count = 0;
  const hear = ({ state, hops }) => {
    count++;
    if (hops === 0) {
      parentPort.postMessage({});
      return;
    }
    const next = (state * 1103515245 + 12345) % 2147483648;
    const to = (own.at + 1 + (Math.floor(next / 65536) % (THREADS - 1))) % THREADS;
    own.ports[to].postMessage({ state: next, hops: hops - 1 });
  };
  parentPort.on('message', (message) => {
    if (message === 'end') {
      parentPort.postMessage({ heard: count });
      own.ports.forEach((port) => port && port.close());
      parentPort.close();
    } else if ('ports' in message) {
      own = message;
      own.ports.forEach((port) => port && port.on('message', hear));
    } else {
      hear(message);
    }
  });
}

if (isMainThread) main();
else inThread();
