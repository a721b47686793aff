// What passes between the tests and the solution in JavaScript, when each runs in a sandbox of its own:
// lines of JSON on descriptor 3. Plain data goes by value; functions, class instances and objects with
// methods stay where they were made and go by number, as a Proxy on the other side, whose every
// operation is asked of its owner. Nothing that arrives is ever executed.
import fs from 'node:fs';

export class Gone extends Error {}

const ERRORS = { Error, TypeError, RangeError, SyntaxError, ReferenceError, EvalError, URIError };
const IDENTITY = new WeakMap(); // a proxy -> its number
const LINE_BYTES = 64 << 20;
const DEPTH = 100;

export const numberOf = (x) =>
  (typeof x === 'object' && x !== null) || typeof x === 'function' ? IDENTITY.get(x) : undefined;

function isPlain(x) {
  const proto = Object.getPrototypeOf(x);
  if (proto !== Object.prototype && proto !== null) return false;
  return Reflect.ownKeys(x).every((key) => {
    const { get, set, value } = Object.getOwnPropertyDescriptor(x, key);
    return typeof key === 'string' && !get && !set && typeof value !== 'function';
  });
}

export class Wire {
  // promises: whether a promise of ours goes by number and is watched, as the solution's are.
  // mayDo(operation, object, args): whether the other side may do this to an object of ours.
  constructor({ promises = false, mayDo = () => true } = {}) {
    Object.assign(this, { promises, mayDo, mine: [], numbers: new Map(), theirs: new Map() });
    Object.assign(this, { waiting: new Map(), settled: [], rest: Buffer.alloc(0), gone: false });
    this.locals = new WeakMap(); // a promise made here for one of theirs -> its number
    this.operations = {
      get: (x, key) => x[key],
      set: (x, key, value) => {
        'use strict';
        x[key] = value;
        return true;
      },
      has: (x, key) => key in x,
      keys: (x) => Object.keys(x),
      call: (f, that, ...args) => Reflect.apply(f, that, args),
      construct: (f, ...args) => Reflect.construct(f, args),
      instanceof: (x, kind) => x instanceof kind,
      primitive: (x, hint) => {
        const own = x[Symbol.toPrimitive];
        if (own) return own.call(x, hint);
        const order = hint === 'string' ? ['toString', 'valueOf'] : ['valueOf', 'toString'];
        for (const name of order) {
          const value = typeof x[name] === 'function' ? x[name]() : x;
          if (value === null || typeof value !== 'object') return value;
        }
        throw new TypeError('no primitive value');
      },
      list: (x) => [...x],
    };
  }

  // --- values ---------------------------------------------------------------------------------------
  pack(x, depth = 0) {
    if (depth > DEPTH) throw new TypeError('a value is nested too deeply to be passed on');
    if (x === null || typeof x === 'boolean' || typeof x === 'string') return x;
    if (typeof x === 'number') {
      return Number.isFinite(x) && !Object.is(x, -0) ? x : ['number', Object.is(x, -0) ? '-0' : String(x)];
    }
    if (x === undefined) return ['undefined'];
    if (typeof x === 'bigint') return ['bigint', String(x)];
    if (typeof x === 'symbol') throw new TypeError('a symbol cannot be passed on');
    if (numberOf(x) !== undefined) return ['yours', numberOf(x)];
    const deeper = (y) => this.pack(y, depth + 1);
    if (x instanceof Promise) return this.packPromise(x);
    if (x instanceof Error) return ['error', this.packError(x).error];
    const proto = Object.getPrototypeOf(x);
    if (Array.isArray(x) && proto === Array.prototype) return ['array', Array.from(x, deeper)];
    if (proto === Map.prototype) return ['map', [...x].map(([k, v]) => [deeper(k), deeper(v)])];
    if (proto === Set.prototype) return ['set', [...x].map(deeper)];
    if (proto === Date.prototype) return ['date', x.getTime()];
    if (proto === RegExp.prototype) return ['regexp', x.source, x.flags];
    if (typeof x === 'object' && isPlain(x)) {
      return ['object', Object.keys(x).map((key) => [key, deeper(x[key])])];
    }
    return ['mine', this.number(x), typeof x];
  }

  packPromise(x) {
    const known = this.locals.get(x);
    if (known !== undefined) return ['yours', known];
    if (!this.promises) throw new TypeError('a promise of the tests cannot be passed on');
    const number = this.number(x);
    if (!this.waiting.has(number)) {
      this.waiting.set(number, true);
      const settle = (how) => (value) => this.settled.push([number, how, value]);
      x.then(settle('resolved'), settle('rejected'));
    }
    return ['promise', number];
  }

  settledNow() {
    return this.settled.splice(0).map(([number, how, value]) => [number, how, this.pack(value)]);
  }

  number(x) {
    if (!this.numbers.has(x)) {
      this.numbers.set(x, this.mine.length);
      this.mine.push(x);
    }
    return this.numbers.get(x);
  }

  unpack(x) {
    if (x === null || typeof x !== 'object') return x;
    const [tag, a, b] = x;
    switch (tag) {
      case 'undefined': return undefined;
      case 'number': return Number(a);
      case 'bigint': return BigInt(a);
      case 'array': return a.map((y) => this.unpack(y));
      case 'map': return new Map(a.map(([k, v]) => [this.unpack(k), this.unpack(v)]));
      case 'set': return new Set(a.map((y) => this.unpack(y)));
      case 'date': return new Date(a);
      case 'regexp': return new RegExp(a, b);
      case 'object': {
        const made = {};
        for (const [key, value] of a) {
          const config = { value: this.unpack(value), writable: true, enumerable: true, configurable: true };
          Object.defineProperty(made, String(key), config);
        }
        return made;
      }
      case 'error': return this.unpackError(a);
      case 'yours':
        if (!Number.isInteger(a) || !(a in this.mine)) throw new Gone('an object that was never passed on');
        return this.mine[a];
      case 'mine':
        if (!this.theirs.has(a)) this.theirs.set(a, this.proxy(a, b));
        return this.theirs.get(a);
      case 'promise':
        if (!this.theirs.has(a)) {
          const made = new Promise((resolve, reject) => this.waiting.set(a, { resolve, reject }));
          made.catch(() => {});
          this.locals.set(made, a);
          this.theirs.set(a, made);
        }
        return this.theirs.get(a);
      default: throw new Gone('the other side talks nonsense');
    }
  }

  packError(e) {
    if (!(e instanceof Error)) return { error: ['thrown', this.pack(e)] };
    const kind = e.constructor;
    const fields = Object.keys(e).flatMap((key) => {
      try {
        return [[key, this.pack(e[key])]];
      } catch {
        return [];
      }
    });
    const number = ERRORS[kind?.name] === kind ? null : this.pack(kind);
    return { error: [String(e.name), String(e.message), fields, number] };
  }

  unpackError([name, message, fields, kind]) {
    if (name === 'thrown') return this.unpack(message);
    const e = new (ERRORS[name] ?? Error)(message);
    for (const [key, value] of fields ?? []) {
      if (!['__proto__', 'stack'].includes(key)) e[key] = this.unpack(value);
    }
    if (e.name !== name) Object.defineProperty(e, 'name', { value: String(name), configurable: true });
    if (kind) Object.defineProperty(e, 'kindOverThere', { value: numberOf(this.unpack(kind)) });
    return e;
  }

  proxy(number, kind) {
    const wire = this;
    const target = kind === 'function' ? function () {} : {};
    const ask = (operation, ...args) => wire.ask(operation, ['yours', number], args);
    const made = new Proxy(target, {
      get(_, key) {
        if (key === Symbol.toPrimitive) return (hint) => ask('primitive', hint);
        if (key === Symbol.iterator) return () => ask('list')[Symbol.iterator]();
        if (key === Symbol.hasInstance) {
          return (x) => x?.kindOverThere === number
            || (numberOf(x) !== undefined && wire.ask('instanceof', ['yours', numberOf(x)], [made]) === true);
        }
        return typeof key === 'symbol' ? undefined : ask('get', key);
      },
      set: (_, key, value) => ask('set', key, value),
      has: (_, key) => (typeof key === 'symbol' ? false : ask('has', key)),
      ownKeys: () => (kind === 'function' ? Reflect.ownKeys(target) : ask('keys')),
      getOwnPropertyDescriptor: (_, key) =>
        kind === 'function'
          ? Reflect.getOwnPropertyDescriptor(target, key)
          : { value: ask('get', key), enumerable: true, configurable: true, writable: true },
      apply: (_, that, args) => ask('call', numberOf(that) === undefined ? undefined : that, ...args),
      construct: (_, args) => {
        const result = ask('construct', ...args);
        return typeof result === 'object' || typeof result === 'function' ? result : {};
      },
    });
    IDENTITY.set(made, number);
    return made;
  }

  // --- messages -------------------------------------------------------------------------------------
  ask(operation, x, args) {
    this.send({ do: operation, of: x, args: args.map((y) => this.pack(y)) });
    for (;;) {
      const answer = this.receive();
      if ('do' in answer) this.serve(answer);
      else if ('error' in answer) throw this.unpackError(answer.error);
      else return this.unpack(answer.value);
    }
  }

  serve(message) {
    let answer;
    try {
      const x = message.of === null ? null : this.unpack(message.of);
      const args = message.args.map((y) => this.unpack(y));
      if (!this.mayDo(message.do, x, args)) {
        throw new TypeError(`${message.do} of this object is not to be had from here`);
      }
      const all = x === null ? args : [x, ...args];
      answer = { value: this.pack(this.operations[message.do](...all)) };
    } catch (e) {
      if (e instanceof Gone) throw e;
      answer = this.packError(e);
    }
    this.send(answer);
  }

  send(message) {
    if (this.gone) throw new Gone('the other side has ended');
    let bytes = Buffer.from(`${JSON.stringify(message)}\n`);
    try {
      while (bytes.length) bytes = bytes.subarray(fs.writeSync(3, bytes));
    } catch {
      this.gone = true;
      throw new Gone('the other side has ended');
    }
  }

  receive() {
    const parts = [this.rest];
    let size = this.rest.length;
    let at = this.rest.indexOf(10);
    const chunk = Buffer.alloc(1 << 16);
    while (at < 0) {
      let read = 0;
      try {
        if (!this.gone && size < LINE_BYTES) read = fs.readSync(3, chunk);
      } catch { /* as if it had ended */ }
      if (read === 0) {
        this.gone = true;
        throw new Gone('the other side has ended');
      }
      const piece = Buffer.from(chunk.subarray(0, read));
      const found = piece.indexOf(10);
      if (found >= 0) at = size + found;
      parts.push(piece);
      size += read;
    }
    const all = Buffer.concat(parts);
    this.rest = all.subarray(at + 1);
    const message = JSON.parse(all.subarray(0, at).toString());
    if (message === null || typeof message !== 'object') throw new Gone('the other side talks nonsense');
    return message;
  }
}
