// jest's expect, as much of it as exercises use. A value from the other side is compared by what it
// holds, asked for one property at a time and compared here.
import { Gone, numberOf } from './wire.mjs';

const remote = (x) => numberOf(x) !== undefined;
const shown = (x) => {
  try {
    if (remote(x)) return 'an object of the solution';
    return typeof x === 'string' ? JSON.stringify(x) : (JSON.stringify(x) ?? String(x));
  } catch {
    return typeof x;
  }
};
const keysOf = (x, strict) => Object.keys(x).filter((key) => strict || x[key] !== undefined);

export function equal(a, b, strict = false, seen = []) {
  if (a && typeof a.asymmetricMatch === 'function' && !remote(a)) return a.asymmetricMatch(b);
  if (b && typeof b.asymmetricMatch === 'function' && !remote(b)) return b.asymmetricMatch(a);
  if (Object.is(a, b)) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (seen.some(([x, y]) => x === a && y === b)) return true;
  const within = [...seen, [a, b]];
  if (!remote(a) && !remote(b)) {
    if (a instanceof Error && b instanceof Error) return a.message === b.message;
    if (a instanceof Date || b instanceof Date) {
      return a instanceof Date && b instanceof Date && Object.is(a.getTime(), b.getTime());
    }
    if (a instanceof RegExp || b instanceof RegExp) {
      return a instanceof RegExp && b instanceof RegExp && String(a) === String(b);
    }
    if (a instanceof Set || b instanceof Set) {
      if (!(a instanceof Set && b instanceof Set) || a.size !== b.size) return false;
      return [...a].every((x) => b.has(x) || [...b].some((y) => equal(x, y, strict, within)));
    }
    if (a instanceof Map || b instanceof Map) {
      if (!(a instanceof Map && b instanceof Map) || a.size !== b.size) return false;
      return [...a].every(([k, v]) =>
        [...b].some(([l, w]) => equal(k, l, strict, within) && equal(v, w, strict, within)));
    }
    if (Array.isArray(a) !== Array.isArray(b)) return false;
    if (Array.isArray(a) && a.length !== b.length) return false;
    if (strict && Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  } else if (Array.isArray(a) || Array.isArray(b)) {
    return false;
  }
  const keys = keysOf(a, strict);
  const others = keysOf(b, strict);
  return keys.length === others.length
    && keys.every((key) => others.includes(key) && equal(a[key], b[key], strict, within));
}

function contains(a, part) {
  if (typeof part !== 'object' || part === null || Array.isArray(part)) return equal(a, part);
  return typeof a === 'object' && a !== null && Object.keys(part).every((key) => contains(a[key], part[key]));
}

function thrown(f, wanted) {
  let e;
  try {
    f();
    return [false, 'nothing was thrown'];
  } catch (caught) {
    if (caught instanceof Gone) throw caught; // to end is not to throw
    e = caught;
  }
  const message = String(e?.message ?? e);
  const told = `thrown: ${shown(message)}, wanted ${shown(wanted?.message ?? wanted)}`;
  if (wanted === undefined) return [true, told];
  if (typeof wanted === 'string') return [message.includes(wanted), told];
  if (typeof wanted === 'function') return [e instanceof wanted, told];
  if (wanted instanceof RegExp) return [wanted.test(message), told];
  return [message === wanted.message, told];
}

const number = (x) => typeof x === 'number' || typeof x === 'bigint';
const MATCHERS = {
  toBe: Object.is,
  toEqual: (a, b) => equal(a, b),
  toStrictEqual: (a, b) => equal(a, b, true),
  toMatchObject: contains,
  toBeNull: (a) => a === null,
  toBeUndefined: (a) => a === undefined,
  toBeDefined: (a) => a !== undefined,
  toBeTruthy: (a) => !!a,
  toBeFalsy: (a) => !a,
  toBeNaN: (a) => Number.isNaN(a),
  toBeCloseTo: (a, b, digits = 2) => a === b || Math.abs(a - b) < 10 ** -digits / 2,
  toBeGreaterThan: (a, b) => number(a) && a > b,
  toBeGreaterThanOrEqual: (a, b) => number(a) && a >= b,
  toBeLessThan: (a, b) => number(a) && a < b,
  toBeLessThanOrEqual: (a, b) => number(a) && a <= b,
  toBeInstanceOf: (a, kind) => a instanceof kind,
  toMatch: (a, b) => typeof a === 'string' && (b instanceof RegExp ? b.test(a) : a.includes(b)),
  toContain: (a, b) => (typeof a === 'string' ? a.includes(b) : [...a].includes(b)),
  toContainEqual: (a, b) => [...a].some((x) => equal(x, b)),
  toHaveLength: (a, b) => a.length === b,
  toHaveProperty: (a, key, ...value) =>
    key in Object(a) && (value.length === 0 || equal(a[key], value[0])),
};
MATCHERS.toThrow = MATCHERS.toThrowError = thrown;

function matchers(get, turned) {
  const made = {};
  for (const [name, matcher] of Object.entries(MATCHERS)) {
    made[name] = (...wanted) => {
      const result = matcher(get(), ...wanted);
      const [holds, told] = Array.isArray(result)
        ? result
        : [result, `${name}: got ${shown(get())}, wanted ${shown(wanted[0])}`];
      if (Boolean(holds) === turned) throw new Error(turned ? `not ${told}` : told);
    };
  }
  return made;
}

function later(promise, rejected, turned) {
  const made = {};
  for (const name of Object.keys(MATCHERS)) {
    made[name] = async (...wanted) => {
      const [failed, value] = await Promise.resolve(promise).then((v) => [false, v], (e) => [true, e]);
      if (failed !== rejected || value instanceof Gone) {
        throw new Error(`${failed ? 'rejected' : 'resolved'} with ${shown(value?.message ?? value)}`);
      }
      const throws = rejected && name.startsWith('toThrow');
      const got = throws ? () => { throw value; } : value;
      matchers(() => got, turned)[name](...wanted);
    };
  }
  return made;
}

export function expect(value) {
  return {
    ...matchers(() => value, false),
    not: matchers(() => value, true),
    resolves: { ...later(value, false, false), not: later(value, false, true) },
    rejects: { ...later(value, true, false), not: later(value, true, true) },
  };
}
expect.anything = () => ({ asymmetricMatch: (x) => x !== null && x !== undefined });
expect.any = (kind) => ({ asymmetricMatch: (x) => Object(x) instanceof kind });
expect.arrayContaining = (part) => ({
  asymmetricMatch: (x) => Array.isArray(x) && part.every((p) => x.some((y) => equal(y, p))),
});
expect.objectContaining = (part) => ({ asymmetricMatch: (x) => contains(x, part) });
expect.stringContaining = (part) => ({ asymmetricMatch: (x) => typeof x === 'string' && x.includes(part) });
