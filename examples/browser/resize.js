// Resize and crop as Pillow, torchvision and timm do, to the same bytes. A canvas would resize in another way, and the
// model would see other images than in training.

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// By name: the support, in pixels of the larger image, and the weight at a distance.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [
    2,
    (x) => {
      const d = Math.abs(x);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
    },
  ],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const ONE = 2 ** 22; // weights are whole numbers, of which 2^22 is one

/** Return [first input, weights] of each output along an axis that is resized. */
function weightsOf(from, to, filter) {
  const [reach, weigh] = FILTERS[filter];
  const scale = from / to;
  const wide = Math.max(scale, 1); // a filter is as wide as an output, so that each input counts
  return Array.from({ length: to }, (_, output) => {
    const centre = (output + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach * wide + 0.5));
    const weights = Array.from({ length: end - first }, (_, n) => weigh((first + n - centre + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((weight) => Math.sign(weight) * Math.floor((Math.abs(weight) / sum) * ONE + 0.5))];
  });
}

/** Return RGB pixels with another width: of `lines` lines, each of `from` pixels, whose distances are given. */
function resizeAxis(pixels, from, to, filter, lines, { line, step }, target) {
  const result = new Uint8ClampedArray(lines * to * 3);
  weightsOf(from, to, filter).forEach(([first, weights], output) => {
    for (let row = 0; row < lines; row++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = ONE / 2;
        let at = row * line + first * step + channel;
        for (const weight of weights) {
          sum += weight * pixels[at];
          at += step;
        }
        result[row * target.line + output * target.step + channel] = Math.floor(sum / ONE);
      }
    }
  });
  return result;
}

/** Return an image {width, height, pixels: RGB bytes} in another size. */
export function resize({ width, height, pixels }, toWidth, toHeight, filter) {
  if (!(filter in FILTERS)) throw new Error(`interpolation ${filter} is not one of ${Object.keys(FILTERS).join(", ")}`);
  const across = { line: 3 * toWidth, step: 3 };
  if (toWidth !== width) {
    pixels = resizeAxis(pixels, width, toWidth, filter, height, { line: 3 * width, step: 3 }, across);
  }
  if (toHeight !== height) {
    const down = { line: 3, step: 3 * toWidth };
    pixels = resizeAxis(pixels, height, toHeight, filter, toWidth, down, down);
  }
  return { width: toWidth, height: toHeight, pixels };
}

/** Round as Python does: a half goes to the even neighbour. */
const round = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** Return the square in the middle of an image whose shorter side is resized to size / cropPct. */
export function centreCrop(image, size, cropPct, filter) {
  const shorter = Math.floor(size / cropPct);
  const side = (own, other) => (own <= other ? shorter : Math.trunc((shorter * own) / other));
  const { width, height } = image;
  const { width: w, height: h, pixels } = resize(image, side(width, height), side(height, width), filter);
  const [left, top] = [round((w - size) / 2), round((h - size) / 2)];
  const crop = new Uint8ClampedArray(size * size * 3);
  for (let row = 0; row < size; row++) {
    const start = 3 * ((top + row) * w + left);
    crop.set(pixels.subarray(start, start + 3 * size), 3 * row * size);
  }
  return { width: size, height: size, pixels: crop };
}
