// Faces as pfld_edge_runtime.detection finds them: letterbox, decode, non-maximum suppression, map to landmark boxes.
// Settings (kind, side, enlarge, score, overlap, map) are those of the runtime's class, see pfld_edge.demo.page.

const STRIDES = [8, 16, 32];

/** Size at which a picture lies in the network's input, and the input's size. */
export function letterbox(width, height, { side, enlarge }) {
  const shrink = side / Math.max(width, height);
  const scale = enlarge ? shrink : Math.min(1, shrink);
  const inner = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
  return { inner, canvas: inner.map((length) => Math.ceil(length / 32) * 32) };
}

/** BGR planes of RGBA pixels, of a typed array's kind. */
export function bgrPlanes({ data, width, height }, Kind) {
  const size = width * height;
  const planes = new Kind(3 * size);
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

/** For each network: from a stride's outputs to the score, centre from the cell's corner and log size of its cell i. */
const READERS = {
  YuNet(outputs, stride) {
    const [classes, objects, boxes] = ["cls", "obj", "bbox"].map((name) => outputs[`${name}_${stride}`].data);
    return (i) => [Math.sqrt(clip(classes[i]) * clip(objects[i])), ...[0, 1, 2, 3].map((side) => boxes[4 * i + side])];
  },
  PfldEdgeDetector(outputs, stride, cells) {
    const maps = outputs[`stride${stride}`].data;
    const value = (channel, i) => maps[channel * cells + i];
    return (i) => [1 / (1 + Math.exp(-value(0, i))), value(1, i) + 0.5, value(2, i) + 0.5, value(3, i), value(4, i)];
  },
};

/** Boxes x0, y0, x1, y1 and a score, in pixels of the input, the best first. */
export function decode(outputs, canvas, { kind, score: least, overlap: most }) {
  const found = [];
  for (const stride of STRIDES) {
    const [columns, rows] = canvas.map((length) => length / stride);
    const read = READERS[kind](outputs, stride, columns * rows);
    for (let i = 0; i < columns * rows; i++) {
      const [score, right, down, logWide, logHigh] = read(i);
      if (!(score >= least)) continue;
      const [x, y] = [right + (i % columns), down + Math.floor(i / columns)];
      const [wide, high] = [Math.exp(logWide) / 2, Math.exp(logHigh) / 2];
      found.push([...[x - wide, y - high, x + wide, y + high].map((value) => value * stride), score]);
    }
  }
  found.sort((a, b) => b[4] - a[4]);
  const kept = [];
  for (const box of found) if (kept.every((other) => overlap(box, other) <= most)) kept.push(box);
  return kept;
}

/** From a detector's box to the box tight around landmarks; `map` comes from the runtime, in shares of the box's sides. */
export function landmarkBox([x0, y0, x1, y1], { shift, scale }) {
  const [wide, high] = [x1 - x0, y1 - y0];
  const [x, y] = [(x0 + x1) / 2 + shift[0] * wide, (y0 + y1) / 2 + shift[1] * high];
  const [halfWide, halfHigh] = [(wide * scale[0]) / 2, (high * scale[1]) / 2];
  return [x - halfWide, y - halfHigh, x + halfWide, y + halfHigh];
}
