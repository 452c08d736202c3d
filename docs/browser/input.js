// What the model is given: a small image and style codes. Nothing here touches the page.

/** The weights with which each of `size` output samples reads its input samples: a triangle as wide as the reduction. */
function triangle(length, size) {
  const scale = length / size;
  const support = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support + 0.5));
    const last = Math.min(length, Math.floor(centre + support + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(Math.max(0, 1 - Math.abs(j + 0.5 - centre) / support));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

/** `lines` runs of `length` samples, `step` apart in memory, each resampled to `size` samples; rounded to 8 bits. */
function resampleLines(source, target, { length, size, lines, from, to }) {
  const filter = triangle(length, size);
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < size; i++) {
      const { first, weights } = filter[i];
      for (let c = 0; c < 4; c++) {
        let sum = 0;
        let at = line * from.line + first * from.step + c;
        for (const weight of weights) {
          sum += weight * source[at];
          at += from.step;
        }
        target[line * to.line + i * to.step + c] = sum; // a Uint8ClampedArray rounds
      }
    }
  }
}

/**
 * Resize as munit_fast.data.resize_short_side does: bilinear with antialiasing, like Pillow's BILINEAR.
 * Lines that are only picked from, or averaged in the wrong place, are not the lines of the training pictures.
 *
 * @param {ImageData} image opaque
 * @returns {Uint8ClampedArray} RGBA, size × size
 */
export function resize(image, size) {
  const { width, height, data } = image;
  const narrow = new Uint8ClampedArray(size * height * 4);
  resampleLines(data, narrow, {
    length: width, size, lines: height, from: { line: width * 4, step: 4 }, to: { line: size * 4, step: 4 },
  });
  const result = new Uint8ClampedArray(size * size * 4);
  resampleLines(narrow, result, {
    length: height, size, lines: size, from: { line: 4, step: size * 4 }, to: { line: 4, step: size * 4 },
  });
  return result;
}

/**
 * Pixels as the model reads them.
 *
 * @param {Uint8ClampedArray} rgba size × size
 * @param {number} channels 1 (ITU-R 601 luma) or 3
 * @returns {Float32Array} [channels, size, size] in [-1, 1]
 */
export function toModelRange(rgba, channels) {
  const count = rgba.length / 4;
  const values = new Float32Array(channels * count);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = rgba.subarray(4 * i, 4 * i + 3);
    const levels = channels === 1 ? [Math.round(0.299 * r + 0.587 * g + 0.114 * b)] : [r, g, b];
    levels.forEach((level, c) => (values[c * count + i] = level / 127.5 - 1));
  }
  return values;
}

/**
 * What the model gives as pixels.
 *
 * @param {Float32Array} values [channels, size, size] in [-1, 1]
 * @param {number} channels 1 or 3
 * @returns {Uint8ClampedArray} RGBA
 */
export function toPixels(values, channels) {
  const count = values.length / channels;
  const rgba = new Uint8ClampedArray(4 * count).fill(255);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = (values[(channels === 1 ? 0 : c) * count + i] + 1) * 127.5;
  }
  return rgba;
}

/** Numbers in [0, 1), the same everywhere for a seed (Tommy Ettinger's mulberry32). */
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * The style code of a seed: independent standard normal numbers, by Box and Muller.
 *
 * @returns {Float32Array} [length]
 */
export function styleCode(seed, length) {
  const uniform = mulberry32(seed);
  return Float32Array.from({ length }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform());
  });
}
