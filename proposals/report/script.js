"use strict";
const boxes = JSON.parse(document.getElementById("boxes").textContent);
const layers = document.querySelectorAll(".frame svg");
const slider = document.getElementById("count");
const shown = document.getElementById("shown");

function rectangle(flat, place, hue) {
  const [x1, y1, x2, y2] = flat.slice(4 * place, 4 * place + 4);
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const attributes = { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) };
  for (const [name, value] of Object.entries(attributes)) rect.setAttribute(name, value);
  rect.setAttribute("stroke", `hsl(${hue.toFixed(0)} 90% 56%)`);
  return rect;
}

function draw() {
  const wanted = Number(slider.value);
  shown.value = wanted;
  layers.forEach((layer, image) => {
    const count = Math.min(wanted, boxes[image].length / 4);
    const rects = Array.from({ length: count }, (_, place) =>
      rectangle(boxes[image], place, (240 * place) / Math.max(wanted - 1, 1)));
    layer.replaceChildren(...rects.reverse());
  });
}

let pending = 0;
slider.addEventListener("input", () => {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(draw);
});
draw();
