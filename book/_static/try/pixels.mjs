// What surrounds the networks, as `cause_lite.backbones.tiling` and `Segmenter.segment` do it, in plain JavaScript.
// Pictures are {width, height, data}, 4 bytes a pixel; maps are Float32Array (channels, rows, columns).

const MOST_TILES = 64; // along a side; a picture that would need more is shown smaller
const WEIGHT_BITS = 22; // Pillow's weights are whole multiples of 2 ** -22

/** Round to the nearest whole number, halves to the even one, as Python does. */
function roundEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest === 0.5 ? floor + (floor % 2) : Math.round(value);
}

/** Return which pixels each pixel of a resized row reads, and their weights: a triangle as wide as the scale. */
function triangles(from, to) {
  const scale = from / to, support = Math.max(1, scale);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let x = start; x < end; x++) weights.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) / support)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { start, weights: weights.map((weight) => Math.trunc(0.5 + (weight / total) * 2 ** WEIGHT_BITS)) };
  });
}

/** Resize a picture to (width, height), byte for byte as Pillow's BILINEAR does: rows first, then columns. */
export function resize(picture, width, height) {
  const half = 2 ** (WEIGHT_BITS - 1);
  const wide = new Uint8ClampedArray(width * picture.height * 4);
  triangles(picture.width, width).forEach(({ start, weights }, x) => {
    for (let y = 0; y < picture.height; y++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = half, place = (y * picture.width + start) * 4 + channel;
        for (const weight of weights) { sum += picture.data[place] * weight; place += 4; }
        wide[(y * width + x) * 4 + channel] = sum >> WEIGHT_BITS;
      }
    }
  });
  const data = new Uint8ClampedArray(width * height * 4).fill(255);
  triangles(picture.height, height).forEach(({ start, weights }, y) => {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = half, place = (start * width + x) * 4 + channel;
        for (const weight of weights) { sum += wide[place] * weight; place += width * 4; }
        data[(y * width + x) * 4 + channel] = sum >> WEIGHT_BITS;
      }
    }
  });
  return { width, height, data };
}

function starts(length, size, patch) {
  const step = Math.max(patch, Math.floor(Math.floor(size / 2) / patch) * patch), last = Math.max(0, length - size);
  const places = [];
  for (let place = 0; place < last; place += step) places.push(place);
  return [...places, last];
}

/** Return the tiles by which a picture of (height, width) is seen: its inner size, and where tiles begin. */
export function planTiles(height, width, size, patch) {
  const factor = Math.min(size / Math.min(height, width), (MOST_TILES * size) / Math.max(height, width));
  const inner = [height, width].map((side) => Math.max(patch, roundEven((side * factor) / patch) * patch));
  const [rows, columns] = inner.map((side) => starts(side, size, patch));
  return { size, patch, inner, rows, columns };
}

function mirrored(place, length) {
  const within = place % (2 * length);
  return within < length ? within : 2 * length - 1 - within;
}

/** Return one tile (3, S, S) in 0..1 of a picture at the tiles' scale; what is missing to it is mirrored. */
export function cutTile(picture, top, left, size) {
  const tile = new Float32Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    const row = mirrored(top + y, picture.height) * picture.width;
    for (let x = 0; x < size; x++) {
      const place = (row + mirrored(left + x, picture.width)) * 4;
      for (let channel = 0; channel < 3; channel++) {
        tile[(channel * size + y) * size + x] = picture.data[place + channel] / 255;
      }
    }
  }
  return tile;
}

/** Join maps of tiles (channels, S, S), which count less towards their edges where they overlap. */
export class JoinedMaps {
  constructor(tiling, channels) {
    const { size, patch, inner } = tiling;
    this.side = size / patch;
    this.shown = inner.map((side) => side / patch); // without what was mirrored
    this.grid = inner.map((side) => Math.max(side, size) / patch);
    [this.patch, this.channels] = [patch, channels];
    this.total = new Float32Array(channels * this.grid[0] * this.grid[1]);
    this.weight = new Float32Array(this.grid[0] * this.grid[1]);
  }

  /** Add the map of the tile that begins at (top, left), in pixels. */
  add(map, top, left) {
    const { side, patch, grid, channels } = this, cells = grid[0] * grid[1];
    const ramp = (place) => Math.min(place, side - 1 - place) + 0.5;
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        const cell = (top / patch + y) * grid[1] + left / patch + x, weight = ramp(y) * ramp(x);
        this.weight[cell] += weight;
        for (let c = 0; c < channels; c++) this.total[c * cells + cell] += weight * map[(c * side + y) * side + x];
      }
    }
  }

  /** Return the joined maps {channels, rows, columns, data} of the picture's part. */
  finish() {
    const [rows, columns] = this.shown, data = new Float32Array(this.channels * rows * columns);
    const cells = this.grid[0] * this.grid[1];
    for (let c = 0; c < this.channels; c++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++) {
          const cell = y * this.grid[1] + x;
          data[(c * rows + y) * columns + x] = this.total[c * cells + cell] / this.weight[cell];
        }
      }
    }
    return { channels: this.channels, rows, columns, data };
  }
}

/** Return which two of `from` places each of `to` reads, and how much the second counts: bilinear, corners apart. */
function between(from, to) {
  return Array.from({ length: to }, (_, place) => {
    const at = Math.max(0, ((place + 0.5) * from) / to - 0.5), low = Math.min(from - 1, Math.floor(at));
    return { low, high: Math.min(from - 1, low + 1), share: at - low };
  });
}

/** Return the channel that is largest in each pixel after maps are enlarged to (width, height). */
export function largest(maps, width, height) {
  const { channels, rows, columns, data } = maps, across = between(columns, width);
  const labels = new Uint8Array(width * height), row = new Float32Array(channels * columns);
  between(rows, height).forEach(({ low, high, share }, y) => {
    for (let c = 0; c < channels; c++) {
      for (let x = 0; x < columns; x++) {
        const top = data[(c * rows + low) * columns + x], bottom = data[(c * rows + high) * columns + x];
        row[c * columns + x] = (1 - share) * top + share * bottom;
      }
    }
    across.forEach((part, x) => {
      let best = -Infinity, label = 0;
      for (let c = 0; c < channels; c++) {
        const left = row[c * columns + part.low], right = row[c * columns + part.high];
        const value = (1 - part.share) * left + part.share * right;
        if (value > best) [best, label] = [value, c];
      }
      labels[y * width + x] = label;
    });
  });
  return labels;
}

/** Return maps (channels, rows, columns) as one vector of unit length after another. */
export function unitVectors({ channels, rows, columns, data }) {
  const count = rows * columns, vectors = new Float32Array(count * channels);
  for (let n = 0; n < count; n++) {
    let squares = 0;
    for (let c = 0; c < channels; c++) squares += data[c * count + n] ** 2;
    const length = Math.max(Math.sqrt(squares), 1e-12);
    for (let c = 0; c < channels; c++) vectors[n * channels + c] = data[c * count + n] / length;
  }
  return vectors;
}

/** Return the cosine of each unit vector to that of number `chosen`. */
export function similarities(vectors, channels, chosen) {
  const found = new Float32Array(vectors.length / channels), at = chosen * channels;
  for (let n = 0; n < found.length; n++) {
    for (let c = 0; c < channels; c++) found[n] += vectors[n * channels + c] * vectors[at + c];
  }
  return found;
}

/** Return the first three principal components of maps as red, green and blue, 4 bytes a patch.
 *
 * Each component is stretched so that its 2nd and 98th percentile become 0 and 255, as `plots.pca_colours` does.
 */
export function componentColours(maps) {
  const { channels, rows, columns } = maps, count = rows * columns, data = Float64Array.from(maps.data);
  for (let c = 0; c < channels; c++) {
    const row = data.subarray(c * count, (c + 1) * count), mean = row.reduce((sum, value) => sum + value, 0) / count;
    row.forEach((value, n) => { row[n] = value - mean; });
  }
  const colours = new Uint8ClampedArray(count * 4).fill(255);
  principalDirections(data, channels, count, 3).forEach((direction, component) => {
    const part = new Float64Array(count);
    direction.forEach((weight, c) => part.forEach((_, n) => { part[n] += weight * data[c * count + n]; }));
    const sorted = part.slice().sort(), low = quantile(sorted, 0.02), high = quantile(sorted, 0.98);
    part.forEach((value, n) => { colours[n * 4 + component] = (255 * (value - low)) / (high - low || 1); });
  });
  return colours;
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

const ITERATIONS = 200; // of the power method, enough for a picture; each is a product with the covariance

/** Return the directions of largest variance of centred data (channels, count), by orthogonal iteration. */
function principalDirections(data, channels, count, wanted) {
  const covariance = new Float64Array(channels * channels);
  for (let a = 0; a < channels; a++) {
    for (let b = a; b < channels; b++) {
      let sum = 0;
      for (let n = 0; n < count; n++) sum += data[a * count + n] * data[b * count + n];
      covariance[a * channels + b] = covariance[b * channels + a] = sum;
    }
  }
  let directions = Array.from({ length: wanted }, (_, k) => Float64Array.from({ length: channels }, (_, c) => Math.cos((k + 1) * (c + 1))));
  for (let step = 0; step < ITERATIONS; step++) {
    directions = directions.map((direction) => Float64Array.from({ length: channels }, (_, a) =>
      direction.reduce((sum, weight, b) => sum + covariance[a * channels + b] * weight, 0)));
    directions.forEach((direction, k) => {
      for (const earlier of directions.slice(0, k)) {
        const overlap = direction.reduce((sum, value, c) => sum + value * earlier[c], 0);
        direction.forEach((value, c) => { direction[c] = value - overlap * earlier[c]; });
      }
      const length = Math.hypot(...direction) || 1;
      direction.forEach((value, c) => { direction[c] = value / length; });
    });
  }
  return directions;
}
