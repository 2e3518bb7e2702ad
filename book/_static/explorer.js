// The patch explorer: choose a patch of a scene; see its nearest patches, its concept, positives and negatives, and its cluster.
// A page holds <div class="patch-explorer" data-start="nearest">; the data come from explorer/patches.js, written at the build.
(() => {
  const VIEWS = {
    nearest: "Nearest patches in other scenes",
    concept: "Patches of the same concept",
    pairs: "Positives and negatives of the contrast",
    cluster: "Patches of the same cluster",
  };
  const CELL = 8, NEAREST = 24;

  const decode = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  function start(box, raw) {
    const side = raw.side, count = side * side, wide = raw.channels;
    const spaces = { before: decode(raw.before, Int8Array), after: decode(raw.after, Int8Array) };
    const concepts = decode(raw.concepts, Uint16Array), clusters = decode(raw.clusters, Uint8Array), cosines = decode(raw.cosines, Int8Array);
    const many = Math.round(Math.sqrt(cosines.length)), name = `space-${Math.random().toString(36).slice(2)}`;
    let patch = 5 * count + 10 * side + 8; // of a scene, row by row
    box.innerHTML = `<p class="explorer-tools"><label>Show <select>${Object.entries(VIEWS).map(([key, text]) => `<option value="${key}">${text}</option>`).join("")}</select></label>
      <label><input type="radio" name="${name}" value="before" checked> before the head</label> <label><input type="radio" name="${name}" value="after"> after the head</label>
      <label class="explorer-threshold">positive above <input type="range" min="-0.2" max="1" step="0.05" value="${raw.thresholds[0]}"> <output></output></label></p>
      <p class="explorer-told" aria-live="polite"></p><div class="explorer-scenes"></div>`;
    const choose = box.querySelector("select"), told = box.querySelector(".explorer-told"), range = box.querySelector("input[type=range]");
    choose.value = box.dataset.start || "nearest";
    const canvases = raw.images.map((source, scene) => {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = side * CELL;
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "application");
      canvas.setAttribute("aria-label", `scene ${scene + 1}; arrow keys move the chosen patch`);
      canvas.addEventListener("click", (event) => {
        const at = canvas.getBoundingClientRect(), part = (v, size) => Math.min(side - 1, Math.max(0, Math.floor((v / size) * side)));
        patch = scene * count + part(event.clientY - at.top, at.height) * side + part(event.clientX - at.left, at.width);
        show();
      });
      canvas.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step) return;
        event.preventDefault();
        if (Math.floor(patch / count) !== scene) patch = scene * count + (count + side) / 2;
        const here = patch % count, row = Math.floor(here / side) + step[0], column = (here % side) + step[1];
        if (row >= 0 && row < side && column >= 0 && column < side) patch = scene * count + row * side + column;
        show();
      });
      const image = new Image();
      image.onload = show;
      image.src = source;
      box.querySelector(".explorer-scenes").append(canvas);
      return { canvas, image };
    });

    function lit() { // the number of each patch that is shown: 1 like the chosen one, -1 unlike it
      const scene = Math.floor(patch / count), found = new Int8Array(concepts.length), view = choose.value;
      if (view === "concept") concepts.forEach((c, i) => { found[i] = c === concepts[patch] ? 1 : 0; });
      if (view === "cluster") clusters.forEach((c, i) => { found[i] = c === clusters[patch] ? 1 : 0; });
      if (view === "pairs") concepts.forEach((c, i) => {
        const cosine = cosines[concepts[patch] * many + c] / 127;
        found[i] = cosine > range.value ? 1 : cosine < raw.thresholds[1] ? -1 : 0;
      });
      if (view === "nearest") {
        const space = spaces[box.querySelector("input[type=radio]:checked").value];
        const like = Array.from(concepts, (_, i) => {
          if (Math.floor(i / count) === scene) return [-1e9, i];
          let sum = 0;
          for (let k = 0; k < wide; k++) sum += space[i * wide + k] * space[patch * wide + k];
          return [sum, i];
        });
        like.sort((a, b) => b[0] - a[0]).slice(0, NEAREST).forEach(([, i]) => { found[i] = 1; });
      }
      return found;
    }

    function show() {
      const found = lit(), view = choose.value;
      box.querySelector(".explorer-threshold").hidden = view !== "pairs";
      box.querySelectorAll("input[type=radio]").forEach((one) => { one.disabled = view !== "nearest"; });
      box.querySelector("output").textContent = Number(range.value).toFixed(2);
      canvases.forEach(({ canvas, image }, scene) => {
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0, canvas.width, canvas.height);
        for (let i = 0; i < count; i++) {
          const value = found[scene * count + i], x = (i % side) * CELL, y = Math.floor(i / side) * CELL;
          if (value === 0) { pen.fillStyle = "rgba(20, 20, 20, 0.5)"; pen.fillRect(x, y, CELL, CELL); }
          if (value > 0) { pen.strokeStyle = "#ffd54a"; pen.lineWidth = 1.5; pen.strokeRect(x + 0.75, y + 0.75, CELL - 1.5, CELL - 1.5); }
          if (value < 0) { pen.fillStyle = "rgba(138, 99, 168, 0.45)"; pen.fillRect(x, y, CELL, CELL); }
        }
        if (Math.floor(patch / count) === scene) {
          const here = patch % count;
          pen.strokeStyle = "#ffffff";
          pen.lineWidth = 2;
          pen.strokeRect((here % side) * CELL - 1, Math.floor(here / side) * CELL - 1, CELL + 2, CELL + 2);
        }
      });
      const like = found.filter((v) => v > 0).length, unlike = found.filter((v) => v < 0).length;
      told.textContent = view === "pairs" ? `${like} positives framed, ${unlike} negatives violet, of ${found.length} patches` : `${like} of ${found.length} patches are lit`;
    }
    box.addEventListener("change", show);
    range.addEventListener("input", show);
    show();
  }

  function begin() {
    const boxes = document.querySelectorAll(".patch-explorer");
    if (!boxes.length) return;
    const script = document.createElement("script");
    script.src = `${document.documentElement.dataset.content_root || "./"}explorer/patches.js`;
    script.onload = () => boxes.forEach((box) => start(box, window.PATCHES));
    document.head.append(script);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
