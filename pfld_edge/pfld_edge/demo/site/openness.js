// Openness of eyes and mouth: the definitions of pfld_edge_runtime.reading.openness.
const EYES = [[[60, 64], [61, 62, 63], [67, 66, 65]], [[68, 72], [69, 70, 71], [75, 74, 73]]];
const LIPS = [[88, 92], [89, 90, 91], [95, 94, 93]];

function ratio(points, [corners, upper, lower]) {
  const distance = (a, b) => Math.hypot(points[2 * a] - points[2 * b], points[2 * a + 1] - points[2 * b + 1]);
  const gap = upper.reduce((sum, point, index) => sum + distance(point, lower[index]), 0) / upper.length;
  const width = distance(...corners);
  return width > 0 ? gap / width : NaN;
}

export const eyeOpenness = (points) => EYES.map((eye) => ratio(points, eye));
export const mouthOpenness = (points) => ratio(points, LIPS);
