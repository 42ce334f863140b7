// An HTTP server of node's own, and clients that compare what they get.
const http = require('http');
const crypto = require('crypto');

const large = crypto.randomBytes(2000000);
const server = http.createServer((request, response) => {
  if (request.url === '/large') return response.end(large);
  let count = 0;
  request.on('data', (piece) => { count += piece.length; });
  request.on('end', () => response.end(`got ${count}`));
});

server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  const agent = new http.Agent({ keepAlive: true, maxSockets: 10 });
  const ask = (path, body) => new Promise((resolve, reject) => {
    const options = { port, path, agent, method: body ? 'POST' : 'GET' };
    const request = http.request(options, (response) => {
      const pieces = [];
      response.on('data', (piece) => pieces.push(piece));
      response.on('end', () => resolve(Buffer.concat(pieces)));
    });
    request.on('error', reject);
    request.end(body);
  });
  for (let i = 0; i < 200; i++) {
    const body = crypto.randomBytes(i * 200 + 1);
    if (`${await ask('/', body)}` !== `got ${body.length}`) throw new Error('not as sent');
  }
  const all = await Promise.all(Array.from({ length: 30 }, () => ask('/large')));
  if (!all.every((one) => one.equals(large))) throw new Error('another one');
  console.log('as sent');
  agent.destroy();
  server.close();
});
