// The trusted side in JavaScript: runs tests written for jest, whose imports of the solution stand for
// modules in another sandbox. argv[2]: a JSON file {"spec": the test file, "folder": where it lies,
// "solution": [names of files that are imported over there]}. Writes a line of JSON for each test.
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';
import vm from 'node:vm';
import { expect } from './expect.mjs';
import { Wire } from './wire.mjs';

const plan = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const say = (line) => fs.writeSync(1, `${JSON.stringify(line)}\n`);
console.log = console.info = console.debug = process.stdout.write = () => {}; // 1 is the report's

// The solution may call functions it was given, and read what objects of the tests' own classes hold.
const CLOSED = /^(__|(constructor|prototype|caller|callee|arguments)$)/;
const wire = new Wire({
  mayDo(operation, x, args) {
    if (!wire.numbers.has(x)) return false;
    if (typeof x === 'function') return operation === 'call' || (operation === 'get' && args[0] === 'length');
    if (operation === 'get' || operation === 'has') {
      return typeof args[0] === 'string' && !CLOSED.test(args[0]);
    }
    return ['keys', 'list', 'primitive'].includes(operation);
  },
});

const modules = new Map();
function imported(name) {
  let file = path.normalize(name);
  if (!plan.solution.includes(file)) file = plan.solution.find((f) => f.replace(/\.\w+$/, '') === file);
  if (!file) throw new Error(`${name} is not a file of the solution`);
  if (!modules.has(file)) {
    wire.send({ do: 'import', of: null, args: [file] });
    const answer = wire.receive();
    if ('error' in answer) throw wire.unpackError(answer.error);
    const made = {};
    for (const [key, value] of answer.value) made[key] = wire.unpack(value);
    modules.set(file, made);
  }
  return modules.get(file);
}

// A program of the solution, which the tests start, is started over there.
function spawnSync(program, args, options) {
  if (program !== 'node' && program !== process.execPath) throw new Error(`${program} is not to be had`);
  const there = args.map((a) => (path.isAbsolute(a) ? path.relative(plan.folder, a) : a));
  const ran = wire.ask('spawn', null, ['node', there]);
  const text = (x) => (options?.encoding ? String(x) : Buffer.from(String(x)));
  return { status: Number(ran.status), stdout: text(ran.stdout), stderr: text(ran.stderr) };
}

const builtin = createRequire(import.meta.url);
function require(name) {
  if (name.startsWith('.')) return imported(name);
  if (['child_process', 'node:child_process'].includes(name)) return { spawnSync };
  return builtin(name);
}

function fromModule(source) {
  const names = (list) => list.replace(/\bas\b/g, ':').replace(/\s+/g, ' ');
  let n = 0;
  return source
    .replace(/^import\s+\*\s+as\s+(\w+)\s+from\s*(['"][^'"]+['"]);?/gm, 'const $1 = require($2);')
    .replace(
      /^import\s+(?:(\w+)\s*,?\s*)?(?:\{([^}]*)\}\s*)?from\s*(['"][^'"]+['"]);?/gm,
      (_, whole, list, from) => {
        if (/^['"](@jest\/globals|vitest)['"]$/.test(from)) return '';
        n += 1;
        return `const m$${n} = require(${from});`
          + (whole ? ` const ${whole} = m$${n}.default;` : '')
          + (list ? ` const { ${names(list)} } = m$${n};` : '');
      },
    )
    .replace(/^import\s*(['"][^'"]+['"]);?/gm, 'require($1);');
}

// --- describe, test and their like --------------------------------------------------------------------
const root = { name: '', parent: null, hooks: {} };
let group = root;
const tests = [];
function describe(name, body) {
  const outer = group;
  group = { name: String(name), parent: outer, hooks: {} };
  body();
  group = outer;
}
function test(name, body) {
  tests.push({ name: String(name), body, group });
}
const hook = (kind) => (body) => (group.hooks[kind] ??= []).push(body);
const each = (make) => (table) => (name, body) =>
  table.forEach((row, i) => {
    const args = Array.isArray(row) ? row : [row];
    let at = 0;
    const shown = String(name).replace(/%[sdifjop]/g, () => String(args[at++])).replace(/%#/g, String(i));
    make(shown, () => body(...args));
  });
describe.each = each(describe);
test.each = each(test);
describe.only = describe;
test.only = test;
// Exercism's xtest waits for the pupil to get there; test.skip is for good.
test.skip = test.todo = describe.skip = () => {};

const pathTo = (g) => (g ? [...pathTo(g.parent), g] : []);
const called = (body) =>
  body.length === 0
    ? body()
    : new Promise((resolve, reject) => body((e) => (e ? reject(e) : resolve())));
async function guarded(body) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('took more than 10 s')), 10_000);
  });
  try {
    await Promise.race([called(body), late]);
  } finally {
    clearTimeout(timer);
  }
}

// While a promise of the solution's is open, its event loop is turned from here.
function turn() {
  if ([...wire.waiting.values()].some((x) => x.resolve)) {
    try {
      wire.send({ do: 'turn', of: null, args: [] });
      let answer = wire.receive();
      while ('do' in answer) {
        wire.serve(answer);
        answer = wire.receive();
      }
      for (const [number, how, value] of answer.value) {
        const promise = wire.waiting.get(number);
        wire.waiting.delete(number);
        if (how === 'resolved') promise?.resolve(wire.unpack(value));
        else promise?.reject(wire.unpack(value));
      }
    } catch (e) {
      for (const promise of wire.waiting.values()) promise.reject(e);
      wire.waiting.clear();
    }
  }
  setTimeout(turn, 1);
}

async function run() {
  const begun = new Set();
  for (const [i, { name, body, group: g }] of tests.entries()) {
    const groups = pathTo(g);
    let why = '';
    try {
      for (const x of groups) {
        if (begun.has(x)) continue;
        begun.add(x);
        for (const h of x.hooks.beforeAll ?? []) await guarded(h);
      }
      for (const x of groups) for (const h of x.hooks.beforeEach ?? []) await guarded(h);
      await guarded(body);
    } catch (e) {
      why = (e instanceof Error ? `${e.name}: ${e.message}` : 'threw a value') || 'failed';
    }
    try {
      for (const x of groups.reverse()) for (const h of x.hooks.afterEach ?? []) await guarded(h);
      const last = tests.slice(i + 1).every((t) => !pathTo(t.group).includes(g));
      if (last) for (const h of g.hooks.afterAll ?? []) await guarded(h);
    } catch (e) {
      why ||= String(e?.message ?? 'failed afterwards');
    }
    const full = [...pathTo(g).map((x) => x.name), name].filter(Boolean).join(' > ');
    say({ test: full, passed: why === '', why: why.slice(-500) });
  }
}

try {
  const text = fs.readFileSync(path.join(plan.folder, plan.spec), 'utf8');
  const jest = { setTimeout() {}, fn: undefined };
  const given = {
    ...{ require, describe, test, it: test, xtest: test, xit: test, xdescribe: describe, expect, jest },
    ...{ fit: test, fdescribe: describe, __dirname: plan.folder },
    ...{ beforeAll: hook('beforeAll'), afterAll: hook('afterAll') },
    ...{ beforeEach: hook('beforeEach'), afterEach: hook('afterEach') },
  };
  const spec = vm.compileFunction(fromModule(text), Object.keys(given), { filename: plan.spec });
  spec(...Object.values(given));
  turn();
  await run();
} catch (e) {
  say({ broken: `${e?.name}: ${e?.message}`.slice(-500) });
}
say({ end: true });
process.exit(0);
