"""The style of the page: light and dark, narrow and wide, on a screen and on paper."""

from __future__ import annotations

from typing import Final

# Nothing may load and nothing may run: the page shows names that came from elsewhere.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"

STYLE: Final = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1b1f24;
  --quiet: #5b6470; --line: #dfe3e8; --accent: #0063b1; --bad: #b3261e; --bad-card: #fdecea;
  --good: #1b6b3a; --good-card: #e7f5ec;
  --series-0: #d55e00; --series-1: #0072b2; --series-2: #009e73; --series-3: #b5568f;
  --series-4: #b87a00; --series-5: #3b93c9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1d2127; --ink: #e6e9ed; --quiet: #a2abb7; --line: #39414b;
    --accent: #6cb6ff; --bad: #ff9d94; --bad-card: #3a2020;
    --good: #8fdcaa; --good-card: #1c3326; --series-0: #ff8a3d;
    --series-1: #58b0ea; --series-2: #2fc99b; --series-3: #e39bc6; --series-4: #f2b63c;
    --series-5: #8ccbf0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 78rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.15rem; }
h3 { margin: 1.2rem 0 .6rem; font-size: 1rem; }
p { margin: .35rem 0; max-width: 48rem; }
.verdict { font-size: 1.1rem; font-weight: 600; margin: .7rem 0; padding: .6rem .9rem;
  border-left: .3rem solid var(--line); background: var(--card); border-radius: .3rem;
  max-width: none; overflow-wrap: anywhere; }
.verdict.good { color: var(--good); background: var(--good-card); border-color: var(--good); }
.verdict.bad { color: var(--bad); background: var(--bad-card); border-color: var(--bad); }
.inside { padding: 0 .9rem .9rem; }
.sideways { display: none; font-size: .85rem; color: var(--quiet); }
header .quiet { overflow-wrap: anywhere; }
.quiet, figcaption, .missing, footer, dt { color: var(--quiet); }
.card, figure, details { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
dl.facts { display: flex; flex-wrap: wrap; margin: 0; gap: 1px; overflow: hidden;
  background: var(--line); }
dl.facts > div { background: var(--card); padding: .6rem .9rem; flex: 1 1 15.5rem; min-width: 0; }
dl.facts > div.wide { flex-basis: 100%; }
dl.facts > div.bad { background: var(--bad-card); color: var(--bad); }
dl.facts > div.bad dt { color: inherit; }
dt { font-size: .8rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
figure { margin: 0; padding: .75rem .9rem; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption { font-size: .85rem; margin-top: .3rem; max-width: 60rem; }
figure .scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: 21.5rem; }
figure.wide svg { max-width: 68rem; margin: 0 auto; }
svg text { fill: currentColor; font-family: inherit !important; }
details { margin: 0 0 1rem; }
summary { cursor: pointer; padding: .6rem .9rem; font-weight: 600; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
.table { overflow: auto; max-height: 32rem; border-top: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .87rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.name { min-width: 11rem; }
td.bad { color: var(--bad); font-weight: 600; }
thead th { position: sticky; top: 0; background: var(--card); color: var(--quiet);
  font-weight: 600; white-space: nowrap; box-shadow: inset 0 -1px var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.note { padding: .5rem .9rem; margin: 0; border-top: 1px solid var(--line); }
footer { padding-top: 1.5rem; padding-bottom: 2.5rem; font-size: .85rem; }
.missing { margin-top: 1rem; padding: .6rem .9rem; }
.missing ul { margin: 0; padding-left: 1.2rem; }
@media (max-width: 40rem) {
  header, main, footer { padding-left: .75rem; padding-right: .75rem; }
  header { padding-top: 1.2rem; }
  figure { padding: .5rem; }
  figure.wide svg { min-width: 38rem; }
  .sideways { display: block; }
  th, td { padding: .3rem .6rem; } }
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --quiet: #444;
    --line: #bbb; --bad: #8c1d18; --bad-card: #fff; --good: #14532d;
    --good-card: #fff; --series-0: #d55e00; --series-1: #0072b2;
    --series-2: #009e73; --series-3: #b5568f; --series-4: #b87a00; --series-5: #3b93c9; }
  body { font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .4rem; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  .figures { display: block; }
  figure { margin-bottom: .8rem; }
  figure, tr, dl.facts > div { break-inside: avoid; }
  h2 { break-after: avoid; }
  svg, figure.wide svg { min-width: 0; max-height: 22cm; }
  /* What is folded could not be unfolded on paper. */
  details::details-content { content-visibility: visible; block-size: auto; }
  .table, figure .scroll { overflow: visible; max-height: none; }
  thead th { position: static; } }
"""
