/** Makes a text area as high as its text, up to `most` pixels. */
export function fitHeight(area: HTMLTextAreaElement, most: number): void {
  area.style.height = "auto";
  const border = area.offsetHeight - area.clientHeight;
  area.style.height = `${Math.min(area.scrollHeight + border, most)}px`;
}
