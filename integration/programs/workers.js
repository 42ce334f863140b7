// Threads that send each other messages, and work that a pool of threads does: libuv tells of both by eventfds.
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { promises: fs } = require('fs');
const { createHash, pbkdf2 } = require('crypto');

const ROUNDS = 3000;

function inThreads() {
  const worker = new Worker(__filename);
  const hash = createHash('sha1');
  let round = 0;
  return new Promise((done) => {
    worker.on('message', (message) => {
      hash.update(String(message));
      if (round++ < ROUNDS) worker.postMessage(round);
      else worker.terminate().then(() => done(hash.digest('hex')));
    });
  });
}

async function inPool() {
  for (let i = 0; i < ROUNDS; i++) await fs.stat('/etc/passwd');
  const all = [];
  for (let i = 0; i < 50; i++) all.push(new Promise((done) => pbkdf2('a', String(i), 10, 8, 'sha1', (_, key) => done(key.toString('hex')))));
  return (await Promise.all(all)).join('');
}

if (isMainThread) {
  inThreads().then((sum) => console.log(sum)).then(inPool).then((keys) => console.log(keys));
} else {
  parentPort.on('message', (message) => parentPort.postMessage(message * 7));
  parentPort.postMessage(0);
}
