"""How a report looks: a calm page in the fonts of the reader's system, light or dark as they like it."""

from typing import Final

# Series: the palette of Okabe and Ito, which colour-blind readers can tell apart; a little lighter in the dark.
CSS: Final = """
:root { --paper: #fbfbf9; --card: #ffffff; --ink: #1d2329; --muted: #667079; --line: #e3e5e4; --link: #1f5f99;
  --better: #1b7f5c; --worse: #b8432f; --better-bg: #e4f3ec; --worse-bg: #fae9e5;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73; --series-3: #b0669a;
  --series-4: #c58a00; --series-5: #3f9fd8; --series-6: #7a5c3e; --series-7: #6a6fb5; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181c; --card: #1a2026; --ink: #e4e7ea; --muted: #97a1aa; --line: #2c343c; --link: #7db8ea;
    --better: #5cc79b; --worse: #ee8d77; --better-bg: #17362b; --worse-bg: #3d221d;
    --series-0: #4ea6e0; --series-1: #ef8a45; --series-2: #3cc79d; --series-3: #d793c2;
    --series-4: #e3b04b; --series-5: #8ccbf2; --series-6: #b8987a; --series-7: #9da2e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header p, .about { color: var(--muted); margin: .2rem 0 0; }
h1 { font-size: 1.7rem; font-weight: 600; letter-spacing: -.01em; margin: 0; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 0 0 .4rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.4rem 1.5rem;
  margin-top: 1.4rem; }
svg { display: block; width: 100%; min-width: 38rem; height: auto; margin: .6rem 0; }
svg text { font-family: inherit !important; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.about span::before { content: "\\00b7  "; }
.reading p, .reading li { max-width: 46rem; } .reading ul { color: var(--muted); padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
td small { display: block; font-size: .74rem; opacity: .8; }
tbody th, tfoot th { font-weight: 500; } th:first-child { text-align: left; }
tfoot td, tfoot th { border-bottom: 0; border-top: 2px solid var(--line); }
td.better { color: var(--better); background: var(--better-bg); }
td.worse { color: var(--worse); background: var(--worse-bg); }
td.tie, td.baseline { color: var(--muted); }
details { margin-top: .8rem; } summary { cursor: pointer; color: var(--link); }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .84rem; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { background: white; } section { break-inside: avoid; border: 0; padding: .5rem 0; } }
"""
