// The untrusted side in JavaScript: imports the solution and does what the tests ask of it. It hides
// nothing from the solution, and need not. argv[2]: the solution's folder. Descriptor 3: the other side.
import { spawnSync } from 'node:child_process';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Gone, Wire } from './wire.mjs';

const folder = resolve(process.argv[2]);
const wire = new Wire({ promises: true });
wire.operations.import = (name) => import(pathToFileURL(resolve(folder, name)).href);
wire.operations.spawn = (program, args) => {
  const ran = spawnSync(program, args, { cwd: folder, stdio: 'pipe' });
  return { status: ran.status, stdout: String(ran.stdout), stderr: String(ran.stderr) };
};
process.on('unhandledRejection', () => {});
process.on('uncaughtException', () => {});

try {
  for (;;) {
    const message = wire.receive();
    if (message.do === 'turn') {
      // The event loop goes round, so that promises and timers come on; then what has settled is told.
      await new Promise((go) => setImmediate(go));
      wire.send({ value: wire.settledNow() });
    } else if (message.do === 'import') {
      let answer;
      try {
        const module = await wire.operations.import(message.args[0]);
        answer = { value: Object.keys(module).map((key) => [key, wire.pack(module[key])]) };
      } catch (e) {
        answer = wire.packError(e);
      }
      wire.send(answer);
    } else {
      wire.serve(message);
    }
  }
} catch (e) {
  if (!(e instanceof Gone)) throw e;
}
process.exit(0);
