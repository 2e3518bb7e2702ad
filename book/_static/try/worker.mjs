// Runs a segmenter beside the page, so that the page stays alive meanwhile. Nothing is sent anywhere but to the page.
import * as ort from "../../onnxruntime/ort.wasm.bundle.min.mjs";
import { componentColours, cutTile, JoinedMaps, largest, planTiles, resize, unitVectors } from "./pixels.mjs";

const RUNTIME = new URL("../../onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url);
ort.env.wasm.numThreads = 1; // threads need response headers that a plain file server does not send
let session, model;

/** Fetch a file, and tell the page how much of it is here. */
async function fetchBytes(url, what) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is not there (${response.status})`);
  const total = Number(response.headers.get("Content-Length")), parts = [];
  let done = 0;
  for (const reader = response.body.getReader(); ;) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    parts.push(value);
    done += value.length;
    postMessage({ kind: "progress", what, done, total });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load(chosen) {
  model = undefined;
  ort.env.wasm.wasmBinary ??= await fetchBytes(RUNTIME, "the program that runs networks");
  const bytes = await fetchBytes(chosen.url, `the segmenter ${chosen.name}`);
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  model = chosen;
}

/** Turn vectors (count, channels) into maps (channels, count). */
function transposed(vectors, channels) {
  const count = vectors.length / channels, maps = new Float32Array(vectors.length);
  for (let n = 0; n < count; n++) for (let c = 0; c < channels; c++) maps[c * count + n] = vectors[n * channels + c];
  return maps;
}

async function segment({ chosen, picture, width, height }) {
  if (model?.url !== chosen.url) await load(chosen);
  const { size, patch, clusters, dim } = model;
  const tiling = planTiles(picture.height, picture.width, size, patch);
  const scaled = resize(picture, tiling.inner[1], tiling.inner[0]);
  const logits = new JoinedMaps(tiling, clusters), features = new JoinedMaps(tiling, dim);
  const places = tiling.rows.flatMap((top) => tiling.columns.map((left) => [top, left]));
  for (const [number, [top, left]] of places.entries()) {
    postMessage({ kind: "progress", what: "the picture's tiles", done: number, total: places.length });
    const tile = new ort.Tensor("float32", cutTile(scaled, top, left, size), [1, 3, size, size]);
    const seen = await session.run({ tile });
    logits.add(seen.logits.data, top, left);
    features.add(transposed(seen.features.data, dim), top, left);
  }
  const joined = features.finish(), labels = largest(logits.finish(), width, height);
  const [colours, vectors] = [componentColours(joined), unitVectors(joined)];
  const { rows, columns } = joined;
  postMessage({ kind: "segmented", labels, width, height, rows, columns, dim, colours, vectors });
}

let last = Promise.resolve(); // pictures are segmented one after the other
onmessage = ({ data }) => {
  last = last.then(() => segment(data)).catch((error) => postMessage({ kind: "failed", text: String(error?.message ?? error) }));
};
