# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the page looks, and the JavaScript that puts the settings into its address. Nothing is fetched from elsewhere."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
#main { display: grid; grid-template: "texts tabs" auto "numbers tabs" 1fr / minmax(320px, 2fr) minmax(0, 3fr); }
#texts { grid-area: texts; }
#numbers { grid-area: numbers; }
#tabs { grid-area: tabs; min-width: 0 !important; }
@media (max-width: 760px) {
  #main { grid-template: "texts" auto "tabs" auto "numbers" auto / minmax(0, 1fr); }
}
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 20px; }
.pair figure, .strip figure { margin: 0; min-width: 0; }
.pair figure { display: grid; grid-template-rows: subgrid; grid-row: span 2; }
.pair figcaption { font-size: 15px; font-weight: 600; margin-bottom: 8px; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 6px; }
.pair img, .strip img { display: block; width: 100%; border: 1px solid #d4d4d8; border-radius: 4px; }
img.small { image-rendering: pixelated; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 12px 10px; }
.strip figure { display: grid; gap: 6px; align-content: start; }
.strip figcaption { text-align: center; font-variant-numeric: tabular-nums; font-size: 14px; }
.measured img { width: 100%; min-width: 640px; }
.measured { overflow-x: auto; }
.measured pre { font-size: 11px; line-height: 1.35; margin-top: 12px; }
.hint p { color: #52525b; font-size: 14px; margin: 0; }
.dark .hint p { color: #a1a1aa; }
#title h1 { margin-bottom: 2px; }
"""

# Puts the settings into the address without loading the page again, and gives the whole address.
SHOW_ADDRESS = "(query) => { history.replaceState(null, '', query); return location.href; }"
