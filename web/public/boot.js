// Before the first paint: the theme and language chosen last time, so that nothing flashes.
try {
  const kept = JSON.parse(localStorage.getItem("kt.preferences") || "{}");
  if (kept.theme === "light" || kept.theme === "dark") {
    document.documentElement.dataset.theme = kept.theme;
  }
  if (kept.language === "zh") document.documentElement.lang = "zh-CN";
} catch {
  // Storage may be forbidden; the page then follows the system.
}
