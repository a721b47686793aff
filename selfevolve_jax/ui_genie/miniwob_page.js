// Runs in a MiniWoB++ page before the page's own scripts. It makes an episode a function of its seed
// and actions, and reads the screen: window.__screen is what miniwob.py talks to.
(() => {
  "use strict";

  // Time stands still between actions. Timers, animation frames and the clock are the page's only
  // sources of change beside input, so an advance by a fixed time after every action leaves the same
  // page on every machine, however busy, and no wait costs real time.
  const EPOCH = Date.UTC(2024, 0, 15, 12);
  const timers = new Map();
  let now = 0, next = 1;
  const start = (callback, delay, rest, repeat) => {
    const every = Math.max(1, Number(delay) || 0);
    timers.set(next, {at: now + every, callback, rest, every: repeat ? every : null});
    return next++;
  };
  window.setTimeout = (callback, delay, ...rest) => start(callback, delay, rest, false);
  window.setInterval = (callback, delay, ...rest) => start(callback, delay, rest, true);
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = (id) => {
    timers.delete(id);
  };
  const realFrame = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (callback) => start(() => callback(now), 16, [], false);
  performance.now = () => now;
  const RealDate = Date;
  window.Date = class extends RealDate {
    constructor(...given) {
      if (given.length) super(...given); else super(EPOCH + now);
    }
    static now() { return EPOCH + now; }
  };
  const advance = (milliseconds) => {
    const end = now + milliseconds;
    for (let fired = 0; fired < 20000; fired++) {
      let first = null;
      for (const [id, timer] of timers) {
        if (timer.at <= end && (first === null || timer.at < timers.get(first).at)) first = id;
      }
      if (first === null) break;
      const timer = timers.get(first);
      now = Math.max(now, timer.at);
      if (timer.every === null) timers.delete(first); else timer.at += timer.every;
      try {
        if (typeof timer.callback === "function") timer.callback(...timer.rest);
        else (0, eval)(String(timer.callback));
      } catch (error) {
        console.error(error);  // as an uncaught error in a timer would: the page goes on
      }
    }
    now = end;
  };

  // What would wait for a person, or lead away from the page.
  window.alert = () => {};
  window.confirm = () => true;
  window.prompt = () => null;
  window.open = () => null;
  window.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("click", (event) => {
    const link = event.target instanceof Element && event.target.closest("a[href]");
    if (link && !link.getAttribute("href").startsWith("#")) event.preventDefault();
  });

  // Who listens to clicks: the page's markup does not say.
  const clickable = new WeakSet(), grabbable = new WeakSet();
  const listen = EventTarget.prototype.addEventListener;
  EventTarget.prototype.addEventListener = function (type, ...rest) {
    if (this instanceof Element) {
      if (type === "click") clickable.add(this);
      if (type === "mousedown" || type === "mouseup") grabbable.add(this);
    }
    return listen.call(this, type, ...rest);
  };

  const STILL = `
    *, *::before, *::after {
      animation: none !important; transition: none !important; scroll-behavior: auto !important;
      caret-color: transparent !important;
    }
    html, body { overflow-x: hidden !important; }
    #reward-display, #click-canvas, #sync-task-cover { display: none !important; }`;
  const OURS = new Set(["query", "reward-display", "click-canvas", "sync-task-cover"]);
  const OUTER = new Set(["area", "wrap"]);
  let goal = null;

  // Starts an episode, once or over and over on the same page.
  const begin = (seed, passing) => {
    if (goal === null) {
      const style = document.createElement("style");
      style.textContent = STILL;
      document.head.appendChild(style);
      advance(1000);  // what the page puts off while it loads
      if (window.jQuery) window.jQuery.fx.off = true;
      core.EPISODE_MAX_TIME = 1e9;
      core.startEpisode = () => {};  // called at an episode's end, it would cover the last screen
    }
    timers.clear();
    now = 1000;
    if (document.activeElement) document.activeElement.blur();
    advance(500);  // what the page does about that
    timers.clear();
    now = 1000;
    Math.seedrandom(seed);
    core.startEpisodeReal();
    const said = core.getUtterance();
    goal = typeof said === "string" ? said : String(said.utterance);
    return after(500, passing);
  };

  // Pictures come from disk at a time of their own; none may be half there on a screenshot.
  const loaded = new Set();
  const pictures = async () => {
    const wanted = new Set();
    for (const e of document.querySelectorAll("*")) {
      if (e instanceof HTMLImageElement && e.src) wanted.add(e.src);
      const found = /^url\("(.+)"\)$/.exec(getComputedStyle(e).backgroundImage);
      if (found) wanted.add(found[1]);
    }
    const fresh = [...wanted].filter((address) => !loaded.has(address));
    if (!fresh.length) return;
    await Promise.all(fresh.map((address) => new Promise((resolve) => {
      const image = new Image();
      image.onload = image.onerror = resolve;
      image.src = address;
    })));
    fresh.forEach((address) => loaded.add(address));
    await frames();
  };

  // passing: nobody will look, unless the episode is over.
  const after = async (milliseconds, passing) => {
    advance(milliseconds);
    await pictures();
    const done = Boolean(WOB_DONE_GLOBAL);
    return {
      goal,
      done,
      reward: done ? Number(WOB_RAW_REWARD_GLOBAL) : 0,
      elements: passing && !done ? [] : elements(),
    };
  };

  // Wheel events reach the page's scroll handlers with a frame of the browser's own.
  const frames = () => new Promise((resolve) => realFrame(() => realFrame(resolve)));

  // Whether something under the point can move that way: then a finger there scrolls it, else it drags.
  const scrolls = (x, y, dx, dy) => {
    for (let e = document.elementFromPoint(x, y); e; e = e.parentElement) {
      const overflow = getComputedStyle(e)[dy ? "overflowY" : "overflowX"];
      const page = e === document.documentElement;
      if (!page && overflow !== "auto" && overflow !== "scroll") continue;
      const [at, whole, shown] = dy
        ? [e.scrollTop, e.scrollHeight, e.clientHeight]
        : [e.scrollLeft, e.scrollWidth, e.clientWidth];
      if (dx + dy > 0 ? at + shown < whole - 1 : at > 0) return !page || dy !== 0;
    }
    return false;
  };

  // ---- the element list

  const SHAPES = new Set(["circle", "ellipse", "rect", "polygon", "polyline", "path", "line"]);
  const ROLES = {tab: "tab", menuitem: "menuitem", option: "option", treeitem: "item",
    spinbutton: "input", slider: "slider"};
  const INPUTS = {checkbox: "checkbox", radio: "radio", button: "button", submit: "button",
    reset: "button", image: "button", range: "slider", color: "color", file: "file"};
  // The names that the pages use, and the basic ones of CSS.
  const COLOURS = {black: [0, 0, 0], white: [255, 255, 255], red: [255, 0, 0], green: [0, 128, 0],
    blue: [0, 0, 255], aqua: [0, 255, 255], magenta: [255, 0, 255], yellow: [255, 255, 0],
    lime: [0, 255, 0], olive: [128, 128, 0], grey: [128, 128, 128], purple: [128, 0, 128],
    orange: [255, 165, 0], pink: [255, 192, 203], silver: [192, 192, 192], navy: [0, 0, 128],
    teal: [0, 128, 128], maroon: [128, 0, 0], gold: [255, 215, 0], brown: [165, 42, 42]};
  const colour = (css) => {
    const found = /^rgba?\((\d+), (\d+), (\d+)(?:, ([\d.]+))?\)$/.exec(css);
    if (!found || (found[4] !== undefined && Number(found[4]) === 0)) return "";
    let best = "", least = Infinity;
    for (const [name, rgb] of Object.entries(COLOURS)) {
      const d = rgb.reduce((sum, c, i) => sum + (c - Number(found[i + 1])) ** 2, 0);
      if (d < least) [best, least] = [name, d];
    }
    return best;
  };
  const tidy = (text) => text.replace(/\s+/g, " ").trim();

  const takesClicks = (e) => {
    const cursor = getComputedStyle(e).cursor, text = tidy(e.textContent);
    if (cursor === "pointer") return true;
    if (cursor === "move" || cursor.endsWith("resize")) return false;  // a window's frame
    for (let up = e; up && up !== document.body && !OUTER.has(up.id); up = up.parentElement) {
      // a window that listens as a whole does not make a button of all that is in it
      if (up !== e && tidy(up.textContent) !== text) return false;
      if (clickable.has(up) || up.onclick || (up === e && grabbable.has(up))) return true;
    }
    return false;
  };

  // The largest part of the rectangles in which a click hits the element, as whole pixels; null where
  // there is none. `hit` says whether a point does.
  const hittable = (rects, hit) => {
    let best = null;
    for (const rect of rects) {
      const l = Math.max(0, Math.round(rect.left)), r = Math.min(innerWidth, Math.round(rect.right));
      const t = Math.max(0, Math.round(rect.top)), b = Math.min(innerHeight, Math.round(rect.bottom));
      if (r - l < 1 || b - t < 1) continue;
      const box = hittableIn(l, t, r, b, hit);
      const size = (x) => (x[2] - x[0]) * (x[3] - x[1]);
      if (box && (!best || size(box) > size(best))) best = box;
    }
    return best;
  };
  const middleHits = ([l, t, r, b], hit) => hit(Math.floor((l + r) / 2), Math.floor((t + b) / 2));
  const hittableIn = (l, t, r, b, hit) => {
    const xs = (n) => Array.from({length: n}, (_, i) => l + Math.floor(((i + 0.5) * (r - l)) / n));
    const ys = (n) => Array.from({length: n}, (_, i) => t + Math.floor(((i + 0.5) * (b - t)) / n));
    const whole = [l, t, r, b];
    if (middleHits(whole, hit) && ys(3).every((y) => xs(3).every((x) => hit(x, y)))) return whole;
    // partly covered, or no rectangle: the largest block of a finer grid that is hit throughout
    const n = Math.min(10, r - l), m = Math.min(10, b - t);
    const grid = ys(m).map((y) => xs(n).map((x) => hit(x, y)));
    let best = null, most = 0;
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let right = n;
        for (let k = i; k < m && right > j; k++) {
          let end = j;
          while (end < right && grid[k][end]) end++;
          right = end;
          if ((right - j) * (k - i + 1) <= most) continue;
          const box = [l + Math.floor((j * (r - l)) / n), t + Math.floor((i * (b - t)) / m),
            l + Math.floor((right * (r - l)) / n), t + Math.floor(((k + 1) * (b - t)) / m)];
          if (middleHits(box, hit)) [best, most] = [box, (right - j) * (k - i + 1)];
        }
      }
    }
    return best;
  };

  const elements = () => {
    const found = [];
    const add = (kind, text, e, rects, extra = {}) => {
      const box = hittable(rects, (x, y) => {
        const at = document.elementFromPoint(x, y);
        return at === e || (!extra.itself && e.contains(at));
      });
      if (box) {
        found.push({kind, text: tidy(text), box, focused: document.activeElement === (extra.of || e),
          checked: extra.checked === undefined ? null : extra.checked});
      }
    };
    const boxes = (node) => {
      const range = document.createRange();
      range.selectNodeContents(node);
      // the whole of it first: lines of one text are one thing where a click between them hits too
      return [range.getBoundingClientRect(), ...range.getClientRects()];
    };
    const walk = (e) => {
      if (OURS.has(e.id)) return;
      const style = getComputedStyle(e);
      if (style.display === "none") return;
      const tag = e.tagName.toLowerCase(), rects = [e.getBoundingClientRect(), ...e.getClientRects()];
      const shown = style.visibility === "visible" && Number(style.opacity) > 0;
      if (Number(style.opacity) === 0) return;
      if (tag === "script" || tag === "style") return;
      if (tag === "label") {
        const box = e.querySelector("input[type=checkbox], input[type=radio]");
        if (box && shown) {
          add(box.type, e.textContent, e, rects, {checked: box.checked, of: box});
          return;
        }
      }
      if (tag === "input") {
        const type = e.type, kind = INPUTS[type] || "input";
        if (!shown || type === "hidden") return;
        if (kind === "checkbox" || kind === "radio") {
          const label = e.id && document.querySelector(`label[for="${CSS.escape(e.id)}"]`);
          add(kind, label ? label.textContent : "", e, rects, {checked: e.checked});
        } else {
          const value = type === "password" ? "*".repeat(e.value.length) : e.value;
          add(kind, value || (kind === "input" ? e.placeholder : ""), e, rects);
        }
        return;
      }
      if (tag === "textarea") { if (shown) add("textarea", e.value || e.placeholder, e, rects); return; }
      if (tag === "select") {
        if (!shown) return;
        if (e.size > 1 || e.multiple) {
          for (const option of e.options) {
            add("option", option.text, option, [option.getBoundingClientRect()],
              {checked: option.selected});
          }
        } else {
          add("select", e.selectedOptions.length ? e.selectedOptions[0].text : "", e, rects);
        }
        return;
      }
      if (tag === "button") {
        // jQuery UI draws this one as a cross
        const cross = e.classList.contains("ui-dialog-titlebar-close");
        if (shown) add("button", cross ? "x" : e.textContent, e, rects);
        return;
      }
      if (tag === "img") { if (shown) add("image", e.alt, e, rects); return; }
      if (tag === "canvas") { if (shown) add("canvas", "", e, rects); return; }
      if (SHAPES.has(tag)) {
        const points = tag === "polygon" ? e.points.numberOfItems : 0;
        const kind = tag === "rect" ? "rectangle" : points === 3 ? "triangle" : tag;
        if (shown) add(kind, colour(style.fill) || colour(style.stroke), e, rects);
        return;
      }
      const role = e.getAttribute("role") || (tag === "text" ? "" : undefined);
      const link = tag === "a" || e.classList.contains("alink");
      const kindOf = () => link ? "link" : (role && ROLES[role]) || (takesClicks(e) ? "item" : "text");
      const children = [...e.childNodes].filter((n) =>
        n instanceof Element || (n instanceof Text && n.data.trim() !== ""));
      const onlyText = children.length > 0 && children.every((n) => n instanceof Text);
      if (onlyText && shown) {
        const kind = kindOf();
        add(kind, e.textContent, e, kind === "text" ? boxes(e) : rects);
        return;
      }
      const before = found.length;
      for (const child of children) {
        if (child instanceof Element) walk(child);
        else if (shown) add(kindOf(), child.data, e, boxes(child), {itself: true});
      }
      if (found.length === before && shown && takesClicks(e)) {
        add((role && ROLES[role]) || "block", colour(style.backgroundColor), e, rects);
      }
    };
    walk(document.body);
    return found;
  };

  window.__screen = {begin, after, frames, scrolls};
})();
