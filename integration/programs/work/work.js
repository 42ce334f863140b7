// Hashes in a worker thread and runs children, for so many seconds.
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { createHash } = require('crypto');
const { execFileSync } = require('child_process');

const digest = () => createHash('sha256').update(Buffer.alloc(4 << 20, 'x')).digest('hex');

if (isMainThread) {
    const end = Date.now() + process.argv[2] * 1000;
    const seen = new Set();
    const worker = new Worker(__filename);
    worker.on('message', (hash) => {
        const sum = Array.from({ length: 1e5 }, (_, index) => index).reduce((a, b) => a + b);
        seen.add(`${hash} ${sum} ${execFileSync('/bin/echo', ['child']).toString().trim()}`);
        if (Date.now() < end) return worker.postMessage('again');
        console.log([...seen].sort().join('\n'));
        worker.terminate();
    });
    worker.postMessage('begin');
} else {
    parentPort.on('message', () => parentPort.postMessage(digest()));
}
