// Boxes are x0, y0, x1, y1 in pixels of the picture.

/** The box tight around landmarks, by which the next frame of a video is cut; null where there is none. */
export function tightBox(points) {
  const x = points.filter((_, index) => index % 2 === 0);
  const y = points.filter((_, index) => index % 2 === 1);
  const box = [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)];
  return box.every(Number.isFinite) && box[2] > box[0] && box[3] > box[1] ? box : null;
}

export function betweenCorners(a, b) {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}

/** Arrow keys move by a step, with Shift they resize about the centre; null for other keys. */
export function keyedBox([x0, y0, x1, y1], key, shift, step) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
  if (!dx && !dy) return null;
  if (!shift) return [x0 + dx * step, y0 + dy * step, x1 + dx * step, y1 + dy * step];
  const box = [x0 - dx * step, y0 + dy * step, x1 + dx * step, y1 - dy * step];
  return box[2] - box[0] > 8 && box[3] - box[1] > 8 ? box : null;
}
