// The leak, live: 200 points, a head that projects them on a line, two clusters on that line, and a labelled probe.
// With `detach` the probe's loss moves the probe alone; without it, it turns the head, and the clusters follow.
(() => {
  const SIZE = 300, RATE = 0.6, STEPS = 4, NS = "http://www.w3.org/2000/svg";

  function random(seed) { // a small generator (mulberry32), so that every reader sees the same points
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function points() { // two classes, 140 and 60, apart in height; two loose groups, apart in width, that are no classes
    const draw = random(7), normal = () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());
    return Array.from({ length: 200 }, (_, i) => {
      const label = i < 140 ? 0 : 1, group = draw() < 0.5 ? -1 : 1;
      return { x: 1.3 * group + 0.35 * normal(), y: (label ? 0.8 : -0.8) + 0.3 * normal(), label };
    });
  }

  function clusters(values) { // two means on a line, from its ends
    let low = Math.min(...values), high = Math.max(...values);
    for (let i = 0; i < 25; i++) {
      const middle = (low + high) / 2, mean = (some) => some.reduce((a, b) => a + b, 0) / some.length;
      low = mean(values.filter((v) => v <= middle));
      high = mean(values.filter((v) => v > middle));
    }
    return values.map((v) => (v > (low + high) / 2 ? 1 : 0));
  }

  function scores(found, truth) {
    const n = [[0, 0], [0, 0]];
    found.forEach((c, i) => n[c][truth[i]]++);
    const kept = n[0][0] + n[1][1] >= n[0][1] + n[1][0] ? n : [n[1], n[0]];
    const iou = [0, 1].map((k) => kept[k][k] / (kept[k][0] + kept[k][1] + kept[1 - k][k]));
    const shares = n.map((row) => (row[0] + row[1]) / found.length).filter((share) => share > 0);
    return {
      miou: 50 * (iou[0] + iou[1]), pacc: (100 * (kept[0][0] + kept[1][1])) / found.length,
      effective: Math.exp(-shares.reduce((sum, share) => sum + share * Math.log(share), 0)),
    };
  }

  function start(box) {
    const all = points(), truth = all.map((p) => p.label);
    let angle, slope, offset, steps;
    box.innerHTML = `<div class="leak-row"><svg viewBox="0 0 ${SIZE} ${SIZE}" role="img" aria-label="200 points; shape is the class, colour the cluster; the line is the head's direction"></svg>
      <div><p><label><input type="checkbox" checked> <code>detach</code> the head's output before the labelled probe</label></p>
      <p><button type="button">Train ${STEPS} steps</button> <button type="button">Start again</button></p>
      <table><tr><th scope="row">steps</th><td></td></tr><tr><th scope="row">mIoU, %</th><td></td></tr><tr><th scope="row">pixel accuracy, %</th><td></td></tr>
      <tr><th scope="row">effective clusters</th><td></td></tr></table><p class="leak-note" aria-live="polite"></p></div></div>`;
    const svg = box.querySelector("svg"), cells = box.querySelectorAll("td"), note = box.querySelector(".leak-note");
    const [train, again] = box.querySelectorAll("button"), detach = box.querySelector("input");
    const place = (v) => SIZE / 2 + (v * SIZE) / 5.2;
    const shape = (name, about) => {
      const one = document.createElementNS(NS, name);
      Object.entries(about).forEach(([key, value]) => one.setAttribute(key, value));
      return svg.appendChild(one);
    };

    function show() {
      const heights = all.map((p) => p.x * Math.cos(angle) + p.y * Math.sin(angle)), found = clusters(heights);
      svg.replaceChildren();
      shape("line", { x1: place(-2.4 * Math.cos(angle)), y1: place(2.4 * Math.sin(angle)), x2: place(2.4 * Math.cos(angle)), y2: place(-2.4 * Math.sin(angle)), class: "leak-head" });
      all.forEach((p, i) => {
        const at = { class: `leak-${found[i]}` };
        if (p.label) shape("rect", { x: place(p.x) - 3.5, y: place(-p.y) - 3.5, width: 7, height: 7, ...at });
        else shape("circle", { cx: place(p.x), cy: place(-p.y), r: 3.5, ...at });
      });
      const told = scores(found, truth);
      [steps, told.miou.toFixed(1), told.pacc.toFixed(1), told.effective.toFixed(2)].forEach((text, i) => { cells[i].textContent = text; });
      note.textContent = steps === 0 ? "Circles and squares are the classes; colours are the clusters." :
        detach.checked ? "The probe learned; the head and its clusters stay as they were." : "The labelled loss turned the head: the clusters follow the labels.";
    }

    function learn() {
      for (let s = 0; s < STEPS; s++) {
        let turn = 0, up = 0, right = 0;
        all.forEach((p) => {
          const height = p.x * Math.cos(angle) + p.y * Math.sin(angle), likely = 1 / (1 + Math.exp(-(slope * height + offset)));
          const wrong = (likely - p.label) / all.length;
          up += wrong * height;
          right += wrong;
          turn += wrong * slope * (p.y * Math.cos(angle) - p.x * Math.sin(angle));
        });
        slope -= RATE * up;
        offset -= RATE * right;
        if (!detach.checked) angle -= RATE * turn;
        steps++;
      }
      show();
    }

    function reset() {
      [angle, slope, offset, steps] = [0.15, 0.2, 0, 0];
      show();
    }
    train.addEventListener("click", learn);
    again.addEventListener("click", reset);
    reset();
  }
  const begin = () => document.querySelectorAll(".leak-live").forEach(start);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
