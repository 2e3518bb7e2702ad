// The page that segments a reader's photograph. What computes runs in worker.mjs; here pictures are read and drawn.
import { similarities } from "./pixels.mjs";

const LONGEST = 1024; // pixels of the longer side, at most, of what is shown and saved
const MOST_PIXELS = 16e6; // of a picture; a larger one is made smaller first, for the memory of phones
const PICTURES = ["photograph", "clusters", "features", "similarity"];
const $ = (name) => document.getElementById(`try-${name}`);
const index = new URL("../../segmenters/index.json", import.meta.url);
let content, model, worker, picture, result, chosen, lit = null; // `lit` is the one cluster that is shown, if any

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
  if (text) progress("");
}

function progress(text, done = 0, total = 0) {
  $("status").textContent = text;
  $("progress").hidden = !total;
  $("progress").max = total || 1;
  $("progress").value = done;
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** Draw an image onto white, as viewers show what is transparent, at most `limit` pixels in all. */
function drawn(image, width, height) {
  const canvas = canvasOf(width, height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, width, height);
  return canvas;
}

/** Start the worker with a segmenter; what it answers is shown. */
function start() {
  worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => answers[data.kind](data);
  worker.onerror = () => problem("This browser cannot start the segmenter. A recent Firefox, Chrome, Edge or Safari can.");
}

const answers = {
  progress({ what, done, total }) {
    const size = total > 1e5 ? `: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB` : `: ${done} of ${total}`;
    progress(`Loading ${what}`.replace("Loading the picture", "Looking at the picture") + (total ? size : ""), done, total);
  },
  failed({ text }) { problem(`The picture was not segmented: ${text}`); },
  segmented: show,
};

/** Segment an image file, a Blob with a name. */
async function segment(file, name) {
  problem("");
  progress(`Reading ${name}`);
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    problem(`${name} is not a picture that this browser can read; JPEG, PNG and WebP files are.`);
    return;
  }
  if (!worker) start();
  const shrunk = Math.min(1, Math.sqrt(MOST_PIXELS / (image.width * image.height)));
  const whole = drawn(image, Math.max(1, Math.round(image.width * shrunk)), Math.max(1, Math.round(image.height * shrunk)));
  const share = Math.min(1, LONGEST / Math.max(whole.width, whole.height));
  const [width, height] = [whole.width, whole.height].map((side) => Math.max(1, Math.round(side * share)));
  picture = { name, canvas: share < 1 ? drawn(whole, width, height) : whole, file };
  const data = whole.getContext("2d").getImageData(0, 0, whole.width, whole.height).data;
  const chosen = { ...model, url: new URL(model.file, index).href };
  worker.postMessage({ chosen, picture: { width: whole.width, height: whole.height, data }, width, height }, [data.buffer]);
}

/** Return the clusters' colours on the picture, those of all or of the lit one; the slider starts at the share of `cause_lite.lab.colours`. */
function clusterPicture() {
  const { width, height } = result, canvas = canvasOf(width, height), share = $("opacity").value / 100;
  const pixels = picture.canvas.getContext("2d").getImageData(0, 0, width, height);
  result.labels.forEach((label, n) => model.palette[label].forEach((value, channel) => {
    if (lit === null || lit === label) pixels.data[n * 4 + channel] += share * (value - pixels.data[n * 4 + channel]);
  }));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Return colours of patches, 4 bytes each, as a picture of one pixel a patch. */
function patchPicture(colours) {
  const canvas = canvasOf(result.columns, result.rows);
  canvas.getContext("2d").putImageData(new ImageData(colours, result.columns, result.rows), 0, 0);
  return canvas;
}

function show(answer) {
  [result, lit] = [answer, null];
  result.pictures = { photograph: picture.canvas, clusters: clusterPicture(), features: patchPicture(result.colours) };
  for (const name of PICTURES) Object.assign($(name), { width: result.width, height: result.height });
  const counts = new Array(model.clusters).fill(0);
  for (const label of result.labels) counts[label]++;
  $("legend").replaceChildren(...counts.map((count, label) => [count, label]).filter(([count]) => count)
    .sort(([a], [b]) => b - a).map(([count, label]) => legendLine(label, count / result.labels.length)));
  [$("row").max, $("column").max] = [result.rows, result.columns];
  save();
  choose(Math.floor(result.rows / 2), Math.floor(result.columns / 2));
  $("results").hidden = $("more").open = false;
  $("results").scrollIntoView({ block: "start" });
  progress(`${picture.name}: ${$("legend").children.length} clusters, ${result.rows} by ${result.columns} patches.`);
}

function legendLine(label, share) {
  const line = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
  swatch.style.background = `rgb(${model.palette[label].join()})`;
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.append(swatch, `cluster ${label}: ${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
  button.addEventListener("click", () => {
    lit = lit === label ? null : label;
    for (const one of $("legend").querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === button && lit !== null));
    recolour();
  });
  line.append(button);
  return line;
}

function recolour() {
  result.pictures.clusters = clusterPicture();
  draw();
}

/** Offer the label map as a grey PNG of cluster numbers, as `cause-lite segment` writes it. */
function save() {
  const { width, height, labels } = result, canvas = canvasOf(width, height), pixels = new ImageData(width, height);
  labels.forEach((label, n) => pixels.data.set([label, label, label, 255], n * 4));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.toBlob((blob) => {
    URL.revokeObjectURL($("save").href);
    Object.assign($("save"), { href: URL.createObjectURL(blob), download: `${picture.name.replace(/\.[^.]*$/, "")}.labels.png` });
  });
}

/** Choose a patch, and show how similar all others are to it. */
function choose(row, column) {
  chosen = { row, column };
  [$("row").value, $("column").value] = [row + 1, column + 1];
  const found = similarities(result.vectors, result.dim, row * result.columns + column);
  const low = found.reduce((least, value) => Math.min(least, value), 1), colours = new Uint8ClampedArray(found.length * 4).fill(255);
  found.forEach((value, n) => {
    const place = Math.round(((value - low) / (1 - low || 1)) * (content.scale.length - 1));
    colours.set(content.scale[Math.max(0, Math.min(content.scale.length - 1, place))], n * 4);
  });
  result.pictures.similarity = patchPicture(colours);
  const x = Math.floor(((column + 0.5) * result.width) / result.columns), y = Math.floor(((row + 0.5) * result.height) / result.rows);
  const label = result.labels[y * result.width + x];
  $("patch").textContent = `Patch in row ${row + 1}, column ${column + 1}: cluster ${label}. Its least similar patch has a cosine of ${low.toFixed(2)}.`;
  $("low").textContent = low.toFixed(2);
  draw();
}

function draw() {
  for (const [name, source] of Object.entries(result.pictures)) {
    const canvas = $(name), pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(source, 0, 0, canvas.width, canvas.height);
    const [w, h] = [canvas.width / result.columns, canvas.height / result.rows], line = Math.max(1, canvas.width / 300);
    for (const [colour, wider] of [["black", 2 * line], ["white", line]]) {
      Object.assign(pen, { strokeStyle: colour, lineWidth: wider });
      pen.strokeRect(chosen.column * w, chosen.row * h, w, h);
    }
  }
}

function pointed(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const place = (at, length, count) => Math.max(0, Math.min(count - 1, Math.floor((at / length) * count)));
  const row = place(event.clientY - box.top, box.height, result.rows);
  const column = place(event.clientX - box.left, box.width, result.columns);
  if (row !== chosen.row || column !== chosen.column) choose(row, column);
}

function chooseModel(name) {
  model = content.models.find((one) => one.name === name);
  $("note").textContent = `${model.note} The first picture loads ${((model.bytes + content.runtimeBytes) / 1e6).toFixed(0)} MB from this site.`;
  $("labels").textContent = model.labels;
}

function sampleButton({ file, name, alt }) {
  const button = document.createElement("button"), image = document.createElement("img");
  const url = new URL(file, index).href;
  Object.assign(image, { src: url, alt, loading: "lazy" });
  button.type = "button";
  button.append(image);
  button.addEventListener("click", async () => segment(await (await fetch(url)).blob(), name));
  return button;
}

function listen() {
  $("file").addEventListener("change", () => { if ($("file").files[0]) segment($("file").files[0], $("file").files[0].name); });
  const area = $("drop");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) area.addEventListener(kind, (event) => {
    event.preventDefault();
    area.classList.toggle("over", kind.startsWith("drage") || kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) segment(file, file.name);
  });
  for (const name of ["row", "column"]) $(name).addEventListener("input", () => choose($("row").value - 1, $("column").value - 1));
  $("opacity").addEventListener("input", recolour);
  for (const name of PICTURES) {
    $(name).addEventListener("pointermove", pointed);
    $(name).addEventListener("pointerdown", pointed);
  }
  $("model").addEventListener("change", () => {
    chooseModel($("model").value);
    if (picture) segment(picture.file, picture.name);
  });
}

async function open() {
  if (typeof WebAssembly !== "object" || typeof Worker !== "function" || typeof createImageBitmap !== "function") {
    return problem("This browser cannot run WebAssembly, by which the segmenter runs. A recent Firefox, Chrome, Edge or Safari can.");
  }
  const response = await fetch(index);
  if (!response.ok) return problem("The segmenters are not part of this copy of the book; build it with make book.");
  content = await response.json();
  $("model").replaceChildren(...content.models.map(({ name, title }) => new Option(title, name)));
  $("model").parentElement.hidden = content.models.length < 2;
  chooseModel(content.models[0].name);
  $("bar").style.background = `linear-gradient(to right, ${content.scale.map((colour) => `rgb(${colour.slice(0, 3)})`)})`;
  $("samples").append(...content.samples.map(sampleButton));
  listen();
  $("longest").textContent = LONGEST;
  $("controls").hidden = false;
  return progress("");
}

open().catch((error) => problem(`The page could not start: ${error.message}`));
