// Faces by YuNet, as pfld_edge_runtime.detectors has it: letterbox, decode, non-maximum suppression, map to landmark boxes.

const STRIDES = [8, 16, 32];
const LEAST_SCORE = 0.7;
const MOST_OVERLAP = 0.3;

/** Size at which a picture lies in the network's input, and the input's size. */
export function letterbox(width, height, largestSide = 640) {
  const scale = Math.min(1, largestSide / Math.max(width, height));
  const inner = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  return { inner, canvas: inner.map((side) => Math.ceil(side / 32) * 32) };
}

/** BGR planes of RGBA pixels. */
export function bgrPlanes({ data, width, height }) {
  const size = width * height;
  const planes = new Float32Array(3 * size);
  for (let i = 0; i < size; i++) {
    planes[i] = data[4 * i + 2];
    planes[size + i] = data[4 * i + 1];
    planes[2 * size + i] = data[4 * i];
  }
  return planes;
}

const clip = (value) => Math.min(1, Math.max(0, value));

function overlap(a, b) {
  const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const high = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (wide <= 0 || high <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (wide * high) / (area(a) + area(b) - wide * high);
}

/** Boxes x0, y0, x1, y1 and a score, in pixels of the input, the best first. */
export function decode(outputs, canvas) {
  const found = [];
  for (const stride of STRIDES) {
    const [classes, objects, cells] = ["cls", "obj", "bbox"].map((kind) => outputs[`${kind}_${stride}`].data);
    const columns = canvas[0] / stride;
    for (let i = 0; i < classes.length; i++) {
      const score = Math.sqrt(clip(classes[i]) * clip(objects[i]));
      if (!(score >= LEAST_SCORE)) continue;
      const x = cells[4 * i] + (i % columns);
      const y = cells[4 * i + 1] + Math.floor(i / columns);
      const [wide, high] = [Math.exp(cells[4 * i + 2]) / 2, Math.exp(cells[4 * i + 3]) / 2];
      found.push([...[x - wide, y - high, x + wide, y + high].map((value) => value * stride), score]);
    }
  }
  found.sort((a, b) => b[4] - a[4]);
  const kept = [];
  for (const box of found) if (kept.every((other) => overlap(box, other) <= MOST_OVERLAP)) kept.push(box);
  return kept;
}

/** From a detector's box to the box tight around landmarks; `map` comes from the runtime, in shares of the box's sides. */
export function landmarkBox([x0, y0, x1, y1], { shift, scale }) {
  const [wide, high] = [x1 - x0, y1 - y0];
  const [x, y] = [(x0 + x1) / 2 + shift[0] * wide, (y0 + y1) / 2 + shift[1] * high];
  const [halfWide, halfHigh] = [(wide * scale[0]) / 2, (high * scale[1]) / 2];
  return [x - halfWide, y - halfHigh, x + halfWide, y + halfHigh];
}
